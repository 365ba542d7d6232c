"""What the owner of a failed job is told."""

from __future__ import annotations

from errno import EDQUOT, ENOSPC
from typing import Any

from shared.problems import FourfoldError, problem_document

# torch's words, of a build without CUDA and of a machine without a GPU or its driver.
_NO_GPU = ("not compiled with CUDA enabled", "No CUDA GPUs are available", "Found no NVIDIA driver")


def failure_document(error: Exception) -> dict[str, Any]:
    """The problem that a job ends with: a sentence to act on, without paths; the log has the rest."""
    if isinstance(error, FourfoldError):
        document = problem_document(error, None)
        del document["request_id"]
        return document
    if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
        detail = "A disk that the job writes to is full. Nothing was published; make room and submit it again."
        return {"title": "The disk is full", "detail": detail}
    # torch has its own kinds: torch.OutOfMemoryError on a GPU, a RuntimeError of its allocator on the CPU.
    of_torch = type(error).__name__ == "OutOfMemoryError" or "you tried to allocate" in str(error)
    if isinstance(error, MemoryError) or of_torch:
        detail = "The job needs more memory than there is; the last checkpoint is kept. Try a smaller batch."
        return {"title": "Out of memory", "detail": detail}
    if any(words in str(error) for words in _NO_GPU):
        detail = "The job asks for a GPU and its worker has none that it can use. Set device to 'auto' or 'cpu'."
        return {"title": "There is no GPU", "detail": detail}
    detail = f"An unexpected {type(error).__name__}; the job's log says where."
    return {"title": "The job failed", "detail": detail}
