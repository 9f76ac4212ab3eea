"""facejax: 66 papers on faces, vision and graphs, re-implemented in JAX and Flax.

    import facejax

    facejax.list_models("iresnet*")
    net = facejax.create_model("iresnet50", num_features=512)
    variables = facejax.load_pretrained("iresnet50", "backbone.pth")
    detections = facejax.load_pretrained("scrfd_500m_kps", "scrfd_500m_kps.onnx")("photograph.jpg")
    facejax.save_pretrained("iresnet50", variables, "my_iresnet50", num_features=512)
    facejax.recognition.arcface.margin_softmax_loss

Packages and modules are imported when they are used.
"""

from facejax._lazy import lazy
from facejax.models import (
    create_model,
    export_stablehlo,
    from_pretrained,
    list_models,
    load_pretrained,
    model_info,
    save_pretrained,
)

__version__ = "0.1.0"
__all__ = [
    "create_model",
    "export_stablehlo",
    "from_pretrained",
    "list_models",
    "load_pretrained",
    "model_info",
    "save_pretrained",
]
__getattr__, __dir__, __all__ = lazy(__name__, __path__, *__all__)
