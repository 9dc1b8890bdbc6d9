"""``python -m monai_diffae.cli``."""

from monai_diffae.cli import main

main()
