"""The small convolutional net that stands beside the ViT in comparisons. Chapter 6 writes it out in the same words."""

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Stages of 3 x 3 convolution, BatchNorm, ReLU, 2 x 2 max-pooling.

    images (B, C, H, W) -> logits (B, K). One stage a width; H and W are
    halved in each. The last feature map is averaged over all places.
    """

    def __init__(self, in_chans: int, num_classes: int, widths: tuple):
        super().__init__()
        stages, width_before = [], in_chans
        for width in widths:
            stages += [
                nn.Conv2d(width_before, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            width_before = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(width_before, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        grid = self.stages(images)  # (B, width, H / 2^stages, W / 2^stages)
        return self.head(grid.mean(dim=(2, 3)))  # (B, K)
