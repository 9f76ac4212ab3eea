"""facejax: 66 papers on faces, vision and graphs, re-implemented in JAX and Flax.

    import facejax

    facejax.list_models("iresnet*")
    net = facejax.create_model("iresnet50", num_features=512)
    variables = facejax.load_pretrained("iresnet50", "backbone.pth")
    detections = facejax.load_pretrained("scrfd_500m_kps", "scrfd_500m_kps.onnx")("photograph.jpg")
    facejax.recognition.arcface.margin_softmax_loss

Packages and modules are imported when they are used.
"""

from facejax._lazy import lazy
from facejax.models import create_model, list_models, load_pretrained, model_info

__version__ = "0.1.0"
__all__ = ["create_model", "list_models", "load_pretrained", "model_info"]
__getattr__, __dir__, __all__ = lazy(__name__, __path__, *__all__)
