"""Have Keras write what tests/train/test_keras_weights.py reads: files of one random ResNet50V2, and what it answers.

    KERAS_BACKEND=torch python tests/train/keras_files.py FOLDER

A process of its own: Keras is configured by its environment, and warns as it likes.
"""

import sys
from pathlib import Path

import keras
import numpy as np


def main(folder: Path) -> None:
    draw = np.random.default_rng(0)
    backbone = keras.applications.ResNet50V2(include_top=False, weights=None, input_shape=(224, 224, 3))
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape[0]
            scales, shifts = draw.uniform(0.5, 1.5, (2, size)), draw.normal(0, 0.3, (2, size))
            layer.set_weights([scales[0], shifts[0], shifts[1], scales[1]])
        elif isinstance(layer, keras.layers.Conv2D) and layer.use_bias:
            layer.bias.assign(draw.normal(0, 0.1, layer.bias.shape))
    upsampling = keras.layers.UpSampling2D(7, interpolation="bilinear")
    pool = keras.layers.GlobalAveragePooling2D()
    head = [keras.layers.Dense(8, activation="relu"), keras.layers.BatchNormalization(), keras.layers.Dense(4)]
    whole = keras.Sequential([keras.Input((32, 32, 3)), upsampling, backbone, pool, *head])
    whole.compile("adam", "mse")  # its optimizer is saved as well
    images = draw.uniform(-1, 1, (4, 32, 32, 3)).astype("float32")
    features = keras.ops.convert_to_numpy(pool(backbone(upsampling(images), training=False)))

    backbone.save(folder / "legacy.h5")
    backbone.save_weights(folder / "backbone.weights.h5")
    whole.save(folder / "whole.keras")
    np.savez(folder / "answer.npz", images=images, features=features)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
