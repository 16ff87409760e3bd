"""Guess metallic and roughness of a material from its name, as the files of everyday objects rarely store them."""

import re

import numpy as np

# Words of material names -> metallic, range of roughness. The first entry with a match wins, so finishes come first.
# Words are matched as parts of names ("blackplastic"), in English and in the languages of common model libraries.
TABLE: tuple[tuple[str, float, tuple[float, float]], ...] = (
    ("mirror|espejo|miroir", 1.0, (0.02, 0.05)),
    ("wood|madera|fusta|bois|oak|walnut|pine|teak|bamboo|parquet|rattan|wicker|bark|trunk", 0.0, (0.35, 0.75)),
    ("rubber|tire|tyre|tread|goma", 0.0, (0.6, 0.95)),
    ("fabric|cloth|textile|tela|cushion|coixi|pillow|sofa|couch|mattress|towel|carpet|rug|wool", 0.0, (0.75, 1.0)),
    ("shirt|skirt|trouser|sock|hair|fur|cotton|curtain|sheet$|lampshade", 0.0, (0.75, 1.0)),
    ("leather|cuir|cuero|skin|shoe", 0.0, (0.4, 0.7)),
    ("paper|card|book|label|etiqueta|leaf|leaves|soil|earth|ground", 0.0, (0.6, 1.0)),
    ("brushed|cage|grille|sheetmetal", 1.0, (0.3, 0.5)),
    ("rust|castiron|iron|hierro", 1.0, (0.45, 0.75)),
    ("chrome|chrom|cromo|polished|faucet|tap$", 1.0, (0.04, 0.15)),
    ("stainless|inox|steel|acero|acier|silver|argent", 1.0, (0.12, 0.4)),
    ("alumin|alumain", 1.0, (0.2, 0.5)),
    ("brass|gold|bronze|copper|laton|oro$", 1.0, (0.1, 0.4)),
    ("metal", 1.0, (0.15, 0.5)),
    ("ceramic|porcelain|enamel|glaze", 0.0, (0.05, 0.25)),
    ("gloss|lacquer|varnish|polish", 0.0, (0.08, 0.25)),
    ("matte|chalk|plaster|concrete|brick|clay|terracotta|stone", 0.0, (0.7, 1.0)),
    ("marble|granite|tile", 0.0, (0.1, 0.35)),
    ("plastic|plastico|vinyl|pvc|polymer", 0.0, (0.2, 0.55)),
    ("paint|pintura", 0.0, (0.25, 0.6)),
    ("glass|vidro|cristal|screen|display", 0.0, (0.03, 0.12)),
)


def named_material(name: str, rng: np.random.Generator) -> tuple[float, float] | None:
    """Return (metallic, roughness) of a material called `name`, drawn from the range of its kind; None if unknown."""
    position = rng.random()
    for words, metallic, (low, high) in TABLE:
        if re.search(words, name.lower()):
            return metallic, low + position * (high - low)
    return None


def phong_roughness(exponent: float) -> float:
    """Return the roughness whose GGX lobe is as wide as a Blinn-Phong lobe: α² = 2 / (Ns + 2) with α = roughness²."""
    return (2 / (max(exponent, 0.0) + 2)) ** 0.25
