"""Certificates, margins, stability and information: numbers that are promised of a network, and what they promise.

``robustness``, ``optimality``, ``stability`` and ``information`` are the mathematics, on torch alone; metrics are in
:mod:`morphlightning.metrics`, callbacks among the diagnostics. See docs/guarantees.md.
"""
