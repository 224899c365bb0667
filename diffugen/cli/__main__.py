"""``python -m diffugen.cli`` is ``diffugen``."""

from diffugen.cli.app import main

main()
