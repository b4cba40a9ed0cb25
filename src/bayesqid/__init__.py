"""bayesqid: measure quantization-induced degradation, infer its scaling law, project it with honest intervals."""

from importlib.metadata import version

__version__ = version("bayesqid")
