"""``python -m monai_diffae``."""

from monai_diffae.cli import main

main()
