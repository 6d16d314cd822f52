"""`inversion_cifar10` on CIFAR-100."""

_base_ = './inversion_cifar10.py'

model = dict(head=dict(num_classes=100))
data_preprocessor = dict(num_classes=100, mean=[129.3, 124.07, 112.43], std=[68.17, 65.39, 70.42])
