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


def mlp(classes: int = 10, channels: int = 1, size: int = 28) -> nn.Module:
    """Two hidden layers of 256, no convolution."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(channels * size**2, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
        nn.Linear(256, classes),
    )  # fmt: skip


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


def strided_resnet(classes: int = 1000, channels: int = 1, size: int = 32) -> nn.Module:
    """A ResNet for many classes of small images: halved at once, 48-96-192 channels, 0.9 M parameters."""
    net = ResNet(blocks=1, width=48, classes=classes, channels=channels)
    net.stem[0] = nn.Conv2d(channels, 48, 3, 2, 1, bias=False)
    return net


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


def preact_resnet8(classes: int = 10, channels: int = 3, size: int = 32) -> nn.Module:
    """The narrow PreActResNet: one block a stage, 16-32-64 channels, 77 k parameters."""
    return PreActResNet((1, 1, 1), 16, classes, channels)


class _Mixing(nn.Module):
    """A block of the MLP-Mixer (Tolstikhin et al. 2021): across the patches, then across the features."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(patches, 64), nn.GELU(), nn.Linear(64, patches))
        self.features = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.features(self.norm2(x))


class Mixer(nn.Module):
    """A small MLP-Mixer on patches of 4 x 4 pixels."""

    def __init__(self, classes: int, channels: int, size: int, width: int = 64, blocks: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 4, 4)
        self.body = nn.Sequential(*(_Mixing((size // 4) ** 2, width) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


def mixer(classes: int = 10, channels: int = 3, size: int = 32) -> nn.Module:
    """MLP-Mixer of three blocks of 64 features: LayerNorm, GELU, neither convolution nor attention."""
    return Mixer(classes, channels, size)


class _ConvNeXtBlock(nn.Module):
    """Liu et al. 2022: depthwise 5 x 5, LayerNorm, an inverted bottleneck."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.wide, self.narrow = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.gelu(self.wide(self.norm(self.depthwise(x)))))


def small_convnext(classes: int = 10, channels: int = 3, size: int = 32) -> nn.Module:
    """Three stages of one ConvNeXt block, 32-64-96 channels, the first on patches of 2 x 2 pixels."""
    layers: list[nn.Module] = []
    for width in (32, 64, 96):
        layers += [nn.Conv2d(channels, width, 2, 2), nn.GroupNorm(1, width), _ConvNeXtBlock(width)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


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
