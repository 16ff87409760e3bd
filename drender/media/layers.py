"""Choose the layer of a multi-layer EXR that fits an image's label, by the names that renderers give their passes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import OpenImageIO as oiio

from drender.errors import InputError

# Lower-case names of passes in Blender, Arnold, V-Ray, Redshift and Unreal, without punctuation.
PASS_NAMES = {
    "rgb": ("rgb", "rgba", "combined", "beauty", "composite"),
    "basecolor": ("basecolor", "diffcol", "diffusecolor", "diffusefilter", "albedo"),
    "diffuse_albedo": ("diffusealbedo", "albedo", "diffcol", "diffusecolor", "diffusefilter"),
    "normal": ("normal", "normals", "n", "cameranormal", "cameranormals"),
    "depth": ("depth", "z", "zdepth"),
    "roughness": ("roughness",),
    "metallic": ("metallic", "metalness", "metallicity"),
}
MAX_PARTS = 64
COMPONENTS = {"RED": "R", "GREEN": "G", "BLUE": "B"}
CHROMA = {"RY", "BY"}  # of luminance-chroma images, whose Y alone would be gray


class Layer(NamedTuple):
    """Channels of one part of an EXR file."""

    name: str  # "" for channels without a prefix
    part: int
    channels: dict[str, int]  # component, such as "R", -> index of the channel

    def indices(self, preferred: str) -> list[int]:
        """Return the indices of the preferred components, else of R, G, B or X, Y, Z, else of the first."""
        for components in filter(None, (preferred, "RGB", "XYZ")):
            if set(components) <= self.channels.keys():
                return [self.channels[component] for component in components]
        return list(self.channels.values())[:1]


def find_layer(source: "oiio.ImageInput", path: str | Path, label: str, name: str | None = None) -> Layer | None:
    """Return the layer for a label, or None for a single layer of unusual channels or damaged names.

    The user may give the `name` of a layer or channel: whole, or the last part, such as `DiffCol` or `G`. InputErrors
    list the layers where none or several fit.
    """
    try:
        layers = _list_layers(source)
    except UnicodeDecodeError:
        return None
    if name is not None:
        remedy = f"give its whole name: --input-layers {label}=NAME"
        return _only(_named(layers, name), layers, path, f"the name {name!r}", remedy)
    if any(layer.channels.keys() >= CHROMA for layer in layers):
        raise InputError(f"{path}: luminance and chroma (Y, RY, BY) are not read; save it with R, G and B")
    if len(layers) == 1:
        return layers[0] if layers[0].channels.keys() & set("RGBXYZ") else None
    by_name = {name: [layer for layer in layers if _pass_name(layer.name) == name] for name in _names(label)}
    fitting = next(filter(None, by_name.values()), []) or [layer for layer in layers if not layer.name]
    remedy = f"name one with --input-layers {label}=NAME, or write it to a file of its own"
    return _only(fitting, layers, path, f"the label {label!r}", remedy)


def _only(fitting: list[Layer], layers: list[Layer], path: str | Path, wanted: str, remedy: str) -> Layer:
    if len(fitting) == 1:
        return fitting[0]
    problem = "several layers fit" if fitting else "no layer fits"
    names = ", ".join(layer.name or "/".join(layer.channels) for layer in fitting or layers)
    raise InputError(f"{path}: {problem} {wanted}: {names}; {remedy}")


def _named(layers: list[Layer], name: str) -> list[Layer]:
    """Return the layers of a name, else the channels of it as layers of their own."""
    for fits in (lambda other: other == name, lambda other: _pass_name(other) == _pass_name(name)):
        if found := [layer for layer in layers if layer.name and fits(layer.name)]:
            return found
    prefix, _, component = name.rpartition(".")
    return [
        Layer(name, layer.part, {component.upper(): layer.channels[component.upper()]})
        for layer in layers
        if component.upper() in layer.channels and prefix in (layer.name, layer.name.rpartition(".")[2])
    ]


def _list_layers(source: "oiio.ImageInput") -> list[Layer]:
    """Return the layers of all parts, without alpha."""
    specs, layers = [], {}
    while len(specs) < MAX_PARTS and source.seek_subimage(len(specs), 0):
        specs.append(source.spec())
    source.seek_subimage(0, 0)
    for part, spec in enumerate(specs):
        part_name = spec.get_string_attribute("oiio:subimagename") if len(specs) > 1 else ""
        for index, channel in enumerate(spec.channelnames):
            prefix, _, component = channel.rpartition(".")
            component = COMPONENTS.get(component.upper(), component.upper())
            if component not in ("A", "ALPHA"):
                layers.setdefault((part, prefix or part_name), {})[component] = index
    return [Layer(name, part, channels) for (part, name), channels in layers.items()]


def _names(label: str) -> Sequence[str]:
    """Return pass names for a label, best first; environments and relit frames are RGB."""
    return PASS_NAMES.get(label) or (PASS_NAMES["rgb"] if label.startswith("env") else (_normalized(label),))


def _pass_name(layer: str) -> str:
    """Return the last part of a layer's name, such as `ViewLayer.DiffCol`, in lower case without punctuation."""
    return _normalized(layer.rpartition(".")[2])


def _normalized(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
