"""A student of the teacher's own form learns from its outputs: one dense dilation, then an erosion of a dilation.

Expected. One layer: from above, every weight has its turn and is lowered to its place, and counts make rare weights as
fast as frequent ones; from below most weights never win and never move. Two layers: autograd's single path is too
sparse, so sending messages to near winners as well should help any optimizer.
"""

from __future__ import annotations

from report import Report, Setting
from teacher_student_one import one_layer
from teacher_student_two import two_layers


def run(setting: Setting, report: Report) -> None:
    one_layer(setting, report)
    two_layers(setting, report)
