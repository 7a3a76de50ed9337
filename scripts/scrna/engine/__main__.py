"""End the workers of this checkout: ``make stop``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))
    from scrna.engine.run import stop
    from scrna.errors import UserError

    try:
        print("\n".join(stop()))
    except UserError as error:
        sys.exit(str(error))
