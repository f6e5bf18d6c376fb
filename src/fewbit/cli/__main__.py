"""python -m fewbit.cli"""

import sys

from fewbit.cli import main

sys.exit(main())
