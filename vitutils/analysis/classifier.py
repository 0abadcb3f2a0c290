"""A net without its classifier, to get its features, or with a new one.

Classifier is timm's word for the head: the layers between the pooled features and the logits.
"""

import copy
import inspect
import types
from dataclasses import replace

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from vitutils.arguments import checked_features
from vitutils.models.vit import ViTConfig

HEADS = ("head", "heads", "fc", "classifier", "mlp_head", "linear_head")  # ours, timm's; torchvision's; vit-pytorch's


class Pooled(nn.Module):
    """timm's net up to what its head reads: images (B,C,H,W) -> features (B,D)."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net.forward_head(self.net.forward_features(images), pre_logits=True)


class Averaged(nn.Module):
    """A net with two heads, both taken off: the mean of what they read, as the net takes the mean of their logits."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        features = self.net(images)
        return sum(features) / 2 if isinstance(features, tuple) else features  # a pair in train mode


def classifier_names(net: nn.Module) -> list[str]:
    """The names of a net's head: of a distilled one two. Raises ValueError for a net that has none of `HEADS`."""
    if not isinstance(net, nn.Module):
        raise ValueError(f"expected an nn.Module, got a {type(net).__name__}")
    if "_orig_mod" in net._modules:
        raise ValueError("expected the net itself, got torch.compile's wrapper: pass its _orig_mod")
    for name in HEADS:
        if isinstance(getattr(net, name, None), nn.Module):
            names = [name] + [f"{name}_dist"] * isinstance(getattr(net, f"{name}_dist", None), nn.Module)
            _check_reached(net, names)
            return names
    children = ", ".join(name for name, _ in net.named_children())
    raise ValueError(
        f"{type(net).__name__} has no {', '.join(HEADS)} to remove (it has: {children}); "
        f"pass a module that returns features (B, D)"
    )


def _check_reached(net: nn.Module, names: list[str]) -> None:
    """Check that these heads are the last layers of a net, and that it reaches them only by their names."""
    children = dict(net.named_children())
    last = [*children][[*children].index(names[0]) + 1 :] if names[0] in children else []
    if after := [name for name in last if name not in names and any(True for _ in children[name].parameters())]:
        told = f"has {', '.join(after)} after {names[0]}, which may be its head"
    else:
        heads = {id(getattr(net, name)) for name in names}
        held = [(name, value) for name, value in vars(net).items() if isinstance(value, list | tuple)]
        paths = [path for path, module in net.named_modules(remove_duplicate=False) if id(module) in heads]
        paths += [name for name, values in held if heads & {id(value) for value in values}]
        other = [path for path in paths if path not in names]
        own = vars(net).get("forward")
        if not other and (own is None or getattr(own, "__self__", None) is net):
            return
        told = f"reaches {names[0]} as {', '.join(other)} too" if other else f"has a forward of its own: {own}"
    raise ValueError(f"{type(net).__name__} {told}: pass a module that returns features (B, D)")


def without_classifier(net: nn.Module) -> nn.Module:
    """The net without its classifier: images (B,C,H,W) -> pooled features (B,D). It shares the net's weights.

    What timm calls `num_classes=0` and `reset_classifier(0)`, for any net, and without changing it.

    timm's nets can tell what their head reads (`forward_head(..., pre_logits=True)`). Of any other the module
    named head, heads, fc, classifier, mlp_head or linear_head is left out, all of it: of a head of two layers the
    hidden one too. A distilled net, which has a head and a head_dist, gives the mean of what the two read.
    The net that you hand in is not changed. Raises ValueError for one that has none of these, has layers after it, or
    reaches it in another way too.
    """
    own = getattr(net, "forward_head", None)
    if own is not None and hasattr(net, "forward_features") and "pre_logits" in inspect.signature(own).parameters:
        return Pooled(net)
    names = classifier_names(net)
    bare = copy.copy(net)
    bare._modules = dict(net._modules) | dict.fromkeys(names, nn.Identity())  # its own table: the net keeps its head
    if "forward" in vars(net):  # bound to the net, with its head
        bare.forward = types.MethodType(net.forward.__func__, bare)
    return bare if len(names) == 1 else Averaged(bare)


def with_new_classifier(net: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """A copy of the net whose head is a linear probe: logistic regression on its features x (N,D), labels y (N,).

    The head has a logit for each number from 0 to the largest label; one that no image has is never the answer. Of a
    distilled net both heads are the probe. Raises ValueError for features or labels that do not fit, fewer than three
    classes, or a net whose head is not one linear layer, or none, for features of this width.
    """
    x, y, _ = checked_features(x, y, x)
    if len(y.unique()) < 3:
        raise ValueError(f"expected three classes or more, got {len(y.unique())}")
    names = classifier_names(net)
    for name in names:
        old = getattr(net, name)
        if not isinstance(old, nn.Linear | nn.Identity) or getattr(old, "in_features", x.shape[1]) != x.shape[1]:
            raise ValueError(f"expected {name} to be one linear layer for features of {x.shape[1]}, got {old}")
    fitted = LogisticRegression(max_iter=1_000).fit(x.numpy(), y.numpy())
    K, net = int(y.max()) + 1, copy.deepcopy(net)
    like = next(net.parameters())
    for name in names:
        head = nn.Linear(x.shape[1], K)
        with torch.no_grad():
            head.weight.zero_()
            head.bias.fill_(-1e4)
            head.weight[fitted.classes_] = torch.from_numpy(fitted.coef_).float()
            head.bias[fitted.classes_] = torch.from_numpy(fitted.intercept_).float()
        setattr(net, name, head.to(like.device, like.dtype).train(net.training))
    if isinstance(getattr(net, "config", None), ViTConfig):
        net.config = replace(net.config, num_classes=K)
    elif hasattr(net, "num_classes"):
        net.num_classes = K
    return net
