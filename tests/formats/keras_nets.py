"""Small networks of Keras, and what Keras itself answers; run as a program, since Keras is slow to import.

`python keras_nets.py FOLDER` writes for each network NAME.keras, NAME.h5 and NAME.npz with x and y.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 16
Tensor = Any


def _l() -> Any:
    from keras import layers

    return layers


def _body(
    steps: Callable[[Any, Tensor], Tensor], shape: tuple[int, ...] = (SIDE, SIDE, 3), **last: Any
) -> Any:
    """A functional model: some steps, then a head."""
    import keras

    layers = _l()
    entry = layers.Input(shape)
    x = steps(layers, entry)
    x = layers.Flatten()(x) if len(x.shape) > 2 else x
    return keras.Model(entry, layers.Dense(5, **({"activation": "softmax"} | last))(x))


def plain() -> Any:
    import keras

    la = _l()
    return keras.Sequential([
        la.Input((SIDE, SIDE, 3)), la.Conv2D(6, 3, activation="relu"), la.MaxPooling2D(), la.Dropout(0.5),
        la.Conv2D(8, 3, padding="same", activation="relu"), la.AveragePooling2D(2), la.Flatten(),
        la.Dense(12, activation="relu"), la.Dense(5, activation="softmax"),
    ])  # fmt: skip


def same_strided() -> Any:
    """Even and odd sizes, strides and kernels: where zeros go is not symmetric."""

    def steps(la: Any, x: Tensor) -> Tensor:
        x = la.Conv2D(6, 3, 2, padding="same")(x)
        x = la.Conv2D(6, 4, 3, padding="same", activation="elu")(x)
        x = la.Conv2D(6, (2, 5), 1, padding="same", dilation_rate=2)(x)
        return la.Conv2D(4, 2, 2, padding="same")(la.ZeroPadding2D(((1, 0), (2, 3)))(x))

    return _body(steps)


def pooled() -> Any:
    def steps(la: Any, x: Tensor) -> Tensor:
        parts = [
            la.AveragePooling2D(3, 1, "same")(x), la.MaxPooling2D(5, 1, "same")(x),
            la.MaxPooling2D(3, 2, "same")(x), la.AveragePooling2D(2, 2)(x),
        ]  # fmt: skip
        x = la.Concatenate()([la.Concatenate()(parts[:2]), la.UpSampling2D()(la.Concatenate()(parts[2:]))])
        one, two = la.GlobalAveragePooling2D()(x), la.GlobalMaxPooling2D(keepdims=True)(x)
        return la.Concatenate()([one, la.Flatten()(two)])

    return _body(steps)


def normed() -> Any:
    def steps(la: Any, x: Tensor) -> Tensor:
        x = la.BatchNormalization(axis=-1)(la.Conv2D(8, 3)(x))
        x = la.GroupNormalization(4)(la.ReLU(6.0)(x))
        x = la.GroupNormalization(-1)(x)
        x = la.BatchNormalization(scale=False, epsilon=0.01)(la.LayerNormalization()(x))
        x = la.LayerNormalization([1, 2, 3], center=False)(x)
        return la.UnitNormalization()(la.BatchNormalization(center=False)(x))

    return _body(steps)


def depthwise() -> Any:
    def steps(la: Any, x: Tensor) -> Tensor:
        x = la.DepthwiseConv2D(3, 2, "same", depth_multiplier=2)(x)
        x = la.SeparableConv2D(8, 3, padding="same", depth_multiplier=2, activation="swish")(x)
        return la.Conv2D(8, 3, groups=4, use_bias=False)(x)

    return _body(steps)


def turned() -> Any:
    def steps(la: Any, x: Tensor) -> Tensor:
        x = la.Conv2D(4, 3, 4, padding="same")(x)
        parts = [
            la.Conv2DTranspose(3, 3, 2, "same")(x), la.Conv2DTranspose(3, 2, 2, "same")(x),
            la.Conv2DTranspose(3, 4, 2, "same")(x), la.UpSampling2D(2)(x),
            la.UpSampling2D(2, interpolation="bilinear")(x), la.Conv2DTranspose(2, 2, 2, use_bias=False)(x),
        ]  # fmt: skip
        x = la.Concatenate(axis=3)(parts)
        return la.Cropping2D(((1, 0), (1, 2)))(la.Conv2DTranspose(4, 3, 1, activation="relu")(x))

    return _body(steps)


def _residual(la: Any, x: Tensor, wide: int, stride: int = 1) -> Tensor:
    y = la.BatchNormalization()(la.Conv2D(wide, 3, stride, "same", use_bias=False)(x))
    y = la.BatchNormalization()(la.Conv2D(wide, 3, 1, "same", use_bias=False)(la.ReLU()(y)))
    if stride > 1:
        x = la.BatchNormalization()(la.Conv2D(wide, 1, stride, "same", use_bias=False)(x))
    return la.Activation("relu")(la.Add()([y, x]))


def resnet() -> Any:
    def steps(la: Any, x: Tensor) -> Tensor:
        x = la.MaxPooling2D(3, 2)(la.ZeroPadding2D(1)(la.Conv2D(8, 3, 1, "same", activation="relu")(x)))
        x = _residual(la, _residual(la, x, 8), 12, 2)
        return la.GlobalAveragePooling2D()(x)

    return _body(steps)


def mobilenet() -> Any:
    """Inverted residuals, with squeezing by a product."""

    def steps(la: Any, x: Tensor) -> Tensor:
        x = la.Activation("hard_swish")(
            la.BatchNormalization()(la.Conv2D(8, 3, 2, "same", use_bias=False)(x))
        )
        y = la.ReLU(6.0)(la.BatchNormalization()(la.Conv2D(16, 1, use_bias=False)(x)))
        y = la.ReLU(6.0)(la.BatchNormalization()(la.DepthwiseConv2D(3, 1, "same", use_bias=False)(y)))
        s = la.Reshape((1, 1, 16))(la.GlobalAveragePooling2D()(y))
        s = la.Conv2D(16, 1, activation="hard_sigmoid")(la.Conv2D(4, 1, activation="relu")(s))
        y = la.BatchNormalization()(la.Conv2D(8, 1, use_bias=False)(la.Multiply()([y, s])))
        return la.GlobalAveragePooling2D()(la.Add()([x, y]))

    return _body(steps)


def efficient() -> Any:
    """Pixels of 0 to 255 that the network brings down itself, SiLU, stochastic parts."""

    def steps(la: Any, x: Tensor) -> Tensor:
        x = la.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.2, 0.3])(la.Rescaling(1 / 255)(x))
        x = la.RandomRotation(0.1)(la.RandomFlip("horizontal")(x))
        x = la.Activation("silu")(la.BatchNormalization()(la.Conv2D(8, 3, 2, "same", use_bias=False)(x)))
        y = la.Activation("silu")(la.BatchNormalization()(la.DepthwiseConv2D(5, 1, "same")(x)))
        y = la.SpatialDropout2D(0.2)(la.GaussianNoise(0.1)(y))
        return la.GlobalAveragePooling2D()(la.Add()([x, y]))

    return _body(steps)


def vit() -> Any:
    def steps(la: Any, x: Tensor) -> Tensor:
        x = la.Reshape((16, 12))(la.Conv2D(12, 4, 4)(x))
        for _ in range(2):
            y = la.LayerNormalization(epsilon=1e-6)(x)
            x = la.Add()([x, la.MultiHeadAttention(3, 4, dropout=0.1)(y, y)])
            y = la.Dense(24, activation="gelu")(la.LayerNormalization(epsilon=1e-6)(x))
            x = la.Add()([x, la.Dense(12)(y)])
        return la.GlobalAveragePooling1D()(la.LayerNormalization()(x))

    return _body(steps)


def nested() -> Any:
    """Models in a model, one of them called twice, one frozen; and a layer called twice."""

    import keras

    def steps(la: Any, x: Tensor) -> Tensor:
        inner = keras.Sequential([la.Input((SIDE, SIDE, 4)), la.Conv2D(4, 3, padding="same"), la.ReLU()])
        entry = la.Input((SIDE, SIDE, 4))
        y = la.BatchNormalization()(la.Conv2D(4, 1)(entry))
        block = keras.Model(entry, la.Add()([la.BatchNormalization()(y), entry]), name="block")
        shared = la.Conv2D(4, 3, padding="same", name="shared")
        frozen = keras.Sequential([la.Conv2D(4, 1), la.BatchNormalization(), la.Conv2D(4, 1)], name="frozen")
        x = block(inner(block(la.Conv2D(4, 1)(x))))
        x = frozen(shared(shared(x)))
        frozen.trainable = False
        return la.GlobalMaxPooling2D()(x)

    return _body(steps)


def parallel() -> Any:
    """Branches of other depths: the order of layers is not that of their making."""

    def steps(la: Any, x: Tensor) -> Tensor:
        deep = la.Conv2D(4, 1)(la.Conv2D(4, 1, activation="relu")(la.Conv2D(4, 1)(x)))
        flat, middle = la.Conv2D(4, 1)(x), la.Conv2D(4, 1)(la.Conv2D(4, 1)(x))
        low, high = la.Minimum()([flat, deep]), la.Maximum()([flat, middle])
        parts = [la.Average()([low, high, deep]), la.Subtract()([deep, flat]), la.Multiply()([flat, middle])]
        return la.Concatenate()([la.GlobalAveragePooling2D()(p) for p in parts])

    return _body(steps)


def activated() -> Any:
    def steps(la: Any, x: Tensor) -> Tensor:
        x = la.Flatten()(la.AveragePooling2D(4)(x))
        names = (
            "relu relu6 leaky_relu elu selu gelu silu hard_sigmoid hard_silu softplus softsign tanh sigmoid "
            "softmax exponential linear mish celu log_sigmoid hard_tanh squareplus log_softmax"
        )
        parts = [la.Dense(2, activation=name)(x) for name in names.split()]
        own = [
            la.ReLU(2.0, 0.1, 0.2), la.LeakyReLU(0.2), la.PReLU(), la.ELU(0.5), la.Softmax(), la.ReLU(1.5),
            la.ReLU(threshold=0.3), la.ReLU(negative_slope=0.2),
        ]  # fmt: skip
        parts += [layer(la.Dense(3)(x)) for layer in own]
        parts.append(la.Dense(2, activation=la.LeakyReLU(0.05))(x))
        return la.Concatenate()(parts)

    return _body(steps)


def channels_first() -> Any:
    def steps(la: Any, x: Tensor) -> Tensor:
        first = {"data_format": "channels_first"}
        x = la.Conv2D(6, 3, 2, padding="same", activation="relu", **first)(x)
        x = la.BatchNormalization(axis=1)(la.DepthwiseConv2D(3, **first)(x))
        x = la.ZeroPadding2D((1, 2), **first)(la.MaxPooling2D(2, **first)(x))
        x = la.PReLU(shared_axes=[2, 3])(la.UpSampling2D((1, 2), **first)(x))
        one, two = la.Flatten(**first)(x), la.GlobalAveragePooling2D(**first)(x)
        return la.Concatenate()([one, two])

    return _body(steps, (3, SIDE, SIDE))


def gray() -> Any:
    """The network of many tutorials: images without an axis for channels."""
    import keras

    la = _l()
    parts = [
        la.Input((SIDE, SIDE)),
        la.Flatten(),
        la.Dense(16, activation="relu"),
        la.Dropout(0.2),
        la.Dense(5),
    ]
    return keras.Sequential(parts)


def rows() -> Any:
    """Recurrent layers over the rows of an image."""

    def steps(la: Any, x: Tensor) -> Tensor:
        x = la.Reshape((SIDE, SIDE * 3))(x)
        x = la.Bidirectional(la.LSTM(4, return_sequences=True))(x)
        x = la.Bidirectional(la.GRU(3, return_sequences=True), merge_mode="sum")(x)
        x = la.TimeDistributed(la.Dense(6, activation="tanh"))(x)
        x = la.GRU(5, return_sequences=True, reset_after=False, go_backwards=True)(x)
        return la.LSTM(4)(la.SimpleRNN(5, return_sequences=True)(la.Permute((2, 1))(x)))

    return _body(steps)


def one_axis() -> Any:
    def steps(la: Any, x: Tensor) -> Tensor:
        x = la.Reshape((SIDE, SIDE * 3))(x)
        x = la.Conv1D(6, 3, padding="causal", activation="relu")(x)
        x = la.MaxPooling1D(2)(la.Conv1D(6, 4, 2, padding="same")(x))
        x = la.SeparableConv1D(6, 3, padding="same")(la.AveragePooling1D(2, 1, "same")(x))
        x = la.Conv1DTranspose(4, 3, 2, padding="same")(la.ZeroPadding1D(1)(x))
        x = la.Add()([x, la.Attention()([x, x])])
        return la.Concatenate()([la.GlobalMaxPooling1D()(x), la.GlobalAveragePooling1D()(x)])

    return _body(steps)


def operated() -> Any:
    """Operations between layers that are no layers."""
    import keras

    def steps(la: Any, x: Tensor) -> Tensor:
        x = la.Reshape((16, 12))(la.Conv2D(12, 4, 4)(x))
        x = (x - 0.5) * 2.0 + la.Dense(12)(x) / 3.0
        return la.Concatenate()([x[:, 0], keras.ops.mean(x, axis=1), x[:, 2:4, -1]])

    return _body(steps)


def half() -> Any:
    """Weights of half precision in some layers."""

    def steps(la: Any, x: Tensor) -> Tensor:
        x = la.Conv2D(4, 3, 2, dtype="float16")(x)
        return la.Dense(8, dtype="float64")(la.Flatten()(la.Conv2D(4, 3, dtype="mixed_float16")(x)))

    return _body(steps, dtype="float32")


def brain() -> Any:
    return _body(lambda la, x: la.Conv2D(4, 3, 2, dtype="bfloat16")(x), dtype="float32")


def one_sigmoid() -> Any:
    import keras

    la = _l()
    entry = la.Input((SIDE, SIDE, 1))
    x = la.Flatten()(la.Conv2D(4, 3, 2, activation="relu")(entry))
    return keras.Model(entry, la.Dense(1, activation="sigmoid")(x))


def resized() -> Any:
    """Any size of image, brought to one; probabilities by a layer of their own behind a convolution."""
    import keras

    la = _l()
    entry = la.Input((None, None, 3))
    x = la.Resizing(12, 12)(la.Rescaling(2.0, -1.0)(entry))
    x = la.GlobalAveragePooling2D()(la.Conv2D(5, 3)(x))
    return keras.Model(entry, la.Softmax()(x))


def scaled() -> Any:
    """What was learnt from data stands in the first layer."""

    def steps(la: Any, x: Tensor) -> Tensor:
        return la.Conv2D(4, 3, 3, activation="relu")(la.Normalization()(x))

    return _body(steps)


def attended() -> Any:
    """Attention over other values and keys, given by name."""

    def steps(la: Any, x: Tensor) -> Tensor:
        x = la.Reshape((16, 12))(la.Conv2D(12, 4, 4)(x))
        y, z = la.Dense(6)(x), la.Dense(7)(x)
        out = la.MultiHeadAttention(2, 3, value_dim=5, use_bias=False)(query=x, value=y, key=z)
        return la.Concatenate()([out, la.Attention(use_scale=True)([x, x])])

    return _body(steps)


def large() -> Any:
    """So many layers that lists and groups in HDF5 need several parts."""

    def steps(la: Any, x: Tensor) -> Tensor:
        x = la.Flatten()(la.AveragePooling2D(4)(x))
        return la.Concatenate()(
            [la.Dense(2, name=f"a_long_name_of_a_layer_{i}_" * 30)(x) for i in range(120)]
        )

    return _body(steps)


NETS: dict[str, Callable[[], Any]] = {
    f.__name__: f
    for f in (
        plain, same_strided, pooled, normed, depthwise, turned, resnet, mobilenet, efficient, vit, nested,
        parallel, activated, channels_first, gray, rows, one_axis, operated, half, brain, one_sigmoid,
        resized, scaled, attended, large,
    )
}  # fmt: skip


def drawn(model: Any, seed: int) -> None:
    """Weights that are all different, so that none can be taken for another."""
    random = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.name == "count":
            continue
        value = random.normal(0, 0.3, variable.shape)
        variable.assign(np.abs(value) + 0.5 if "variance" in variable.name else value)


def main(folder: Path, names: list[str]) -> None:
    """Write the files of some networks."""
    os.environ["KERAS_BACKEND"] = "torch"
    warnings.simplefilter("ignore")
    import absl.logging
    import keras

    absl.logging.set_verbosity("error")
    for name in names:
        keras.utils.clear_session()
        model = NETS[name]()
        drawn(model, len(name))
        sizes = [SIDE if n is None else n for n in model.input_shape[1:]]
        x = np.random.default_rng(1).random((4, *sizes), np.float32) * (255 if name == "efficient" else 1)
        y = keras.ops.convert_to_numpy(model(x, training=False)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=x, y=y)
        model.save(folder / f"{name}.keras")
        model.save(folder / f"{name}.h5")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(NETS))
