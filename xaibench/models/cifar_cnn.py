"""A network of four convolutions and two dense layers for CIFAR-10, on which rules were first seen to converge."""

from torch import nn


class CifarCNN(nn.Sequential):
    """Inputs [B,3,32,32] -> logits [B,num_classes] (Sixt 2022, chapter 4, a listing in Keras; Sixt et al. 2020).

    Convolutions of 3x3 with 32, 64, 128 and 128 channels that keep the size, a max pooling after the second and the
    fourth, a dense layer of 1024 units; dropout of one half before both dense layers. `relu4` gives the last feature
    map [B,128,16,16]. Weights start as in Keras: uniform by Glorot and Bengio 2010, biases 0.
    num_classes: outputs.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2, self.pool1 = nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.conv3, self.relu3 = nn.Conv2d(64, 128, 3, padding=1), nn.ReLU()
        self.conv4, self.relu4, self.pool2 = nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.flatten, self.dropout1 = nn.Flatten(), nn.Dropout(0.5)
        self.fc5, self.relu5, self.dropout2 = nn.Linear(8 * 8 * 128, 1024), nn.ReLU(), nn.Dropout(0.5)
        self.fc6 = nn.Linear(1024, num_classes)
        for layer in self.children():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
