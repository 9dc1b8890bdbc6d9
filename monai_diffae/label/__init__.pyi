from .app import DiffAEApp as DiffAEApp
from .label_app import AppFolder as AppFolder
