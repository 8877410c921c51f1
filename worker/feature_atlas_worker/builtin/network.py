"""The architecture of `builtin:demo`: six convolutions and a 1x1 classifier, fully convolutional, from 32 px up."""

from collections import OrderedDict

from torch import nn

MEAN, STD, INPUT_SIZE = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (64, 64)


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)


class DemoNetwork(nn.Sequential):
    """Class scores [B, classes] of normalised pictures [B, 3, H, W].

    Made to be looked at: one stride-2 convolution with a wide kernel and average pooling (max pooling and narrow
    strides print checkerboards into gradients), no normalisation layers (they are folded into the convolutions after
    training), and a classifier in front of the global average, so that class units have a place in the picture.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(
            OrderedDict[str, nn.Module](
                conv1=_conv(3, 24, kernel=7, stride=2),
                relu1=nn.ReLU(),
                conv2=_conv(24, 32),
                relu2=nn.ReLU(),
                pool2=nn.AvgPool2d(2),
                conv3=_conv(32, 40),
                relu3=nn.ReLU(),
                conv4=_conv(40, 56),
                relu4=nn.ReLU(),
                pool4=nn.AvgPool2d(2),
                conv5=_conv(56, 72),
                relu5=nn.ReLU(),
                conv6=_conv(72, 96),
                relu6=nn.ReLU(),
                classifier=nn.Conv2d(96, classes, 1),
                average=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
            )
        )
