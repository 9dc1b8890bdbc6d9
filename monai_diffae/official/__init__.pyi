from .latent import load_official_latent as load_official_latent
from .weights import load_official as load_official
