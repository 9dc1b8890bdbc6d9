from . import checkpoint_files as checkpoint_files
from . import latent as latent
from . import weights as weights
from .latent import LinearHead as LinearHead
from .latent import load_official_head as load_official_head
from .latent import load_official_latent as load_official_latent
from .weights import load_official as load_official
