"""Send trained models to others, and get theirs: ``monai_diffae.push`` and ``monai_diffae.pull``."""
