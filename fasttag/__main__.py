"""python -m fasttag"""

import sys

from .cli import main

sys.exit(main())
