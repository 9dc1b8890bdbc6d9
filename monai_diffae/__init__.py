"""Diffusion autoencoders for medical scans, built on MONAI."""

from __future__ import annotations

__version__ = "0.1.0"
