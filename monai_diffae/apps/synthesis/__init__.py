"""Commands that make images. Their functions are imported from ``monai_diffae``."""
