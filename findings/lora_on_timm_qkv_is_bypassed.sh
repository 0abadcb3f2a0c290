#!/usr/bin/env bash
# peft 0.21.0 and timm 1.0.31, with torch 2.14.1, torchvision 0.29.1, Python 3.11
#
# LoRA on `qkv`, the target that everybody gives for a timm ViT, is attached to BEiT, BEiT v2, EVA-02 and Swin V2, counted
# as trainable, and is no part of the computation.
#
# These four hold q and v biases apart and so do not call `self.qkv(x)`: they call F.linear with `self.qkv.weight`. peft
# wraps the layer and lets `.weight` through to the frozen one. With the head trained besides (modules_to_save=["head"],
# as peft's own guide has it) nothing raises: the loss falls, by the head alone. Every lora_ parameter keeps grad None,
# and the logits do not change to the last bit although lora_A and lora_B are both far from 0. On plain ViT, DeiT and
# Swin (V1) the same line works. One would swear that a module named qkv, once replaced, is called.
#
# Output seen:
#   vit_tiny_patch16_224           logits changed: True   lora parameters with a gradient: 4 of 4
#   swin_tiny_patch4_window7_224   logits changed: True   lora parameters with a gradient: 24 of 24
#   beit_base_patch16_224          logits changed: False  lora parameters with a gradient: 0 of 4
#   beitv2_base_patch16_224        logits changed: False  lora parameters with a gradient: 0 of 4
#   eva02_tiny_patch14_224         logits changed: False  lora parameters with a gradient: 0 of 4
#   swinv2_tiny_window8_256        logits changed: False  lora parameters with a gradient: 0 of 24
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet torch==2.14.1 torchvision==0.29.1 timm==1.0.31 peft==0.21.0
env/bin/python -W ignore - <<'PY'
import peft
import timm
import torch

WORKS = {
    "vit_tiny_patch16_224": True,
    "swin_tiny_patch4_window7_224": True,
    "beit_base_patch16_224": False,
    "beitv2_base_patch16_224": False,
    "eva02_tiny_patch14_224": False,
    "swinv2_tiny_window8_256": False,
}
for name, works in WORKS.items():
    torch.manual_seed(0)
    shallow = {} if name.startswith("swin") else {"depth": 2}
    net = timm.create_model(name, num_classes=2, **shallow).eval()
    images = torch.randn(1, *net.default_cfg["input_size"])
    with torch.no_grad():
        before = net(images)
    lora = peft.LoraConfig(target_modules=["qkv"], r=4, init_lora_weights=False, modules_to_save=["head"])
    adapted = peft.get_peft_model(net, lora).eval()
    with torch.no_grad():
        changed = not torch.equal(before, adapted(images))
    adapted(images).square().sum().backward()
    parts = [weight for key, weight in adapted.named_parameters() if "lora_" in key]
    reached = sum(weight.grad is not None for weight in parts)
    print(f"{name:30} logits changed: {changed!s:6} lora parameters with a gradient: {reached} of {len(parts)}")
    assert len(parts) > 0 and all(weight.requires_grad for weight in parts)
    assert changed == works and reached == (len(parts) if works else 0), f"{name} behaves otherwise now"
PY
