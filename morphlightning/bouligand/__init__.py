"""Exact directional calculus of networks with kinks; derived in docs/bouligand.md."""

from morphlightning.bouligand.calls import OperatorCall, operator_calls

__all__ = ["OperatorCall", "operator_calls"]
