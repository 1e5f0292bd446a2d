"""xaibench: which saliency method tells the truth about a network, and how do we know?"""

__version__ = "0.1.0"
