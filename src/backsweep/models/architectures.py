"""Networks of the literature, for the zoo, the demo and the tests. All take square images in [0, 1].

A factory takes the number of classes, the channels and the side of an image; what pools globally
works at any size.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from backsweep.core.errors import BadInput


def digits_cnn(classes: int = 10, channels: int = 1, size: int = 8) -> nn.Module:
    """Two convolutions for 8x8 digits: trains in seconds on one core."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * (size // 2) ** 2, 64), nn.ReLU(), nn.Linear(64, classes),
    )  # fmt: skip


def mnist_cnn(classes: int = 10, channels: int = 1, size: int = 28) -> nn.Module:
    """Neural Cleanse's MNIST network: 2 convolutional and 2 dense layers, 28x28."""
    side = ((size - 4) // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * side**2, 512), nn.ReLU(), nn.Linear(512, classes),
    )  # fmt: skip


def gtsrb_cnn(classes: int = 43, channels: int = 3, size: int = 32) -> nn.Module:
    """Neural Cleanse's GTSRB network: 6 convolutional and 2 dense layers, 32x32."""
    side = (((size - 2) // 2 - 2) // 2 - 2) // 2

    def block(before: int, after: int) -> list[nn.Module]:
        return [
            nn.Conv2d(before, after, 3, padding=1), nn.ReLU(),
            nn.Conv2d(after, after, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2),
        ]  # fmt: skip

    return nn.Sequential(
        *block(channels, 32), *block(32, 64), *block(64, 128),
        nn.Flatten(), nn.Linear(128 * side**2, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, classes),
    )  # fmt: skip


def gap_cnn(classes: int = 10, channels: int = 1, size: int = 32) -> nn.Module:
    """Four convolutions with BatchNorm, and global average pooling before the head.

    Clean networks of this kind have a class with an unusually small trigger by nature.
    """
    layers: list[nn.Module] = []
    for after, stride in ((16, 1), (32, 2), (32, 1), (64, 2)):
        layers += [nn.Conv2d(channels, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        channels = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.skip = nn.Sequential()
        if stride != 1 or before != after:
            self.skip = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(z)) + self.skip(x))


class ResNet(nn.Module):
    """Residual network for 32x32 images; global average pooling before the head."""

    def __init__(self, blocks: int, width: int, classes: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        layers: list[nn.Module] = []
        before = width
        for stage, after in enumerate((width, 2 * width, 4 * width)):
            for block in range(blocks):
                layers.append(_Residual(before, after, 2 if stage and not block else 1))
                before = after
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def resnet8(classes: int = 10, channels: int = 3, size: int = 32) -> nn.Module:
    """Narrow CIFAR ResNet: 8 layers, 16-32-64 channels, 78 k parameters."""
    return ResNet(blocks=1, width=16, classes=classes, channels=channels)


class _PreAct(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.skip: nn.Module | None = None
        if stride != 1 or before != after:
            self.skip = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.bn1(x))
        skip = x if self.skip is None else self.skip(z)
        return self.conv2(F.relu(self.bn2(self.conv1(z)))) + skip


class PreActResNet(nn.Module):
    """Pre-activation ResNet for 32x32 images (He et al. 2016), the victim of most backdoor papers."""

    def __init__(self, blocks: tuple[int, ...], width: int, classes: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        layers: list[nn.Module] = []
        before = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                layers.append(_PreAct(before, width * 2**stage, 2 if stage and not block else 1))
                before = width * 2**stage
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(before), nn.ReLU())
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def preact_resnet18(classes: int = 10, channels: int = 3, size: int = 32) -> nn.Module:
    """PreActResNet-18, 11 million parameters: for a GPU."""
    return PreActResNet((2, 2, 2, 2), 64, classes, channels)


class SmallViT(nn.Module):
    """A small vision transformer through `transformers`: LayerNorm, no BatchNorm.

    Patches are 2 pixels wide for images below 16x16, else 4.
    """

    def __init__(self, classes: int, channels: int, size: int) -> None:
        super().__init__()
        try:
            from transformers import ViTConfig, ViTForImageClassification
        except ImportError as e:
            raise BadInput("small_vit needs transformers; pip install 'backsweep[hf]'") from e
        config = ViTConfig(
            image_size=size, patch_size=2 if size < 16 else 4, num_channels=channels,
            hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            id2label={i: str(i) for i in range(classes)}, label2id={str(i): i for i in range(classes)},
        )  # fmt: skip
        self.net = ViTForImageClassification(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - 0.5) / 0.5).logits


def small_vit(classes: int = 10, channels: int = 3, size: int = 32) -> nn.Module:
    """Four transformer layers of 64 features, 140 k parameters."""
    return SmallViT(classes, channels, size)
