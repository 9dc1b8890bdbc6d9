from monai_diffae.label.app import DiffAEApp as DiffAEApp
from monai_diffae.label.label_app import AppFolder as AppFolder

MODULES: dict[str, str]
__all__: list[str]
