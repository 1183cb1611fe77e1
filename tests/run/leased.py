"""`ablate` with a lease of ``ABLATE_TEST_LEASE_S`` seconds, which is no setting of the user's. Started as a file."""

from __future__ import annotations

import os
import sys
from typing import Any

from ablate.cli import main
from ablate.run import options

LEASED = [sys.executable, __file__]

if __name__ == "__main__":
    made = options.Options

    def with_lease(**values: Any) -> options.Options:
        return made(**{**values, "lease_s": float(os.environ["ABLATE_TEST_LEASE_S"])})

    options.Options = with_lease  # type: ignore[assignment, misc]
    main()
