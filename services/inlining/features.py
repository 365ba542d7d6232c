"""What LLVM tells about a call site, its channel's features by name and in order; and what answers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Decide = Callable[["NDArray[np.int64]"], int]  # (F,) → 1 to inline
# As LLVM 19 to 22 name them, all int64: the cost model's counts, then facts about caller, callee and module.
FEATURES: tuple[str, ...] = (
    *("sroa_savings", "sroa_losses", "load_elimination", "call_penalty", "call_argument_setup"),
    *("load_relative_intrinsic", "lowered_call_arg_setup", "indirect_call_penalty", "jump_table_penalty"),
    *("case_cluster_penalty", "switch_default_dest_penalty", "switch_penalty"),
    *("unsimplified_common_instructions", "num_loops", "dead_blocks", "simplified_instructions", "constant_args"),
    *("constant_offset_ptr_args", "callsite_cost", "cold_cc_penalty", "last_call_to_static_bonus"),
    *("is_multiple_blocks", "nested_inlines", "nested_inline_cost_estimate", "threshold"),
    *("callee_basic_block_count", "callsite_height", "node_count", "nr_ctant_params", "cost_estimate", "edge_count"),
    *("caller_users", "caller_conditionally_executed_blocks", "caller_basic_block_count"),
    *("callee_conditionally_executed_blocks", "callee_users", "is_callee_avail_external", "is_caller_avail_external"),
)
WIDTH = len(FEATURES)
DEFAULT = "inlining_default"  # what stock would decide; last in the stream where it was asked for
STOCK = WIDTH  # its column in a row of WIDTH + 1
