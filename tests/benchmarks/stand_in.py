"""A script with the constructs of airbench94_muon.py that `benchmarks.airbench` relies on, written for tests.

It trains a linear classifier on the mean colours of the images.
"""

SOURCE = """
import os
import sys
with open(sys.argv[0]) as f:
    code = f.read()
from math import ceil

import torch
import torch.nn.functional as F
from torch import nn

@torch.compile
def orthogonal(g):
    return torch.linalg.qr(g.float())[0].to(g.dtype)

class CifarLoader:
    def __init__(self, path, train, batch_size):
        file = os.path.join(path, "train.pt" if train else "test.pt")
        data = torch.load(file, map_location=torch.device("cuda"))
        self.images, self.labels = data["images"], data["labels"]
        self.images = (self.images.half() / 255).permute(0, 3, 1, 2)
        assert len(data["classes"]) > 1
        self.batch_size = batch_size

    def __len__(self):
        return len(self.images) // self.batch_size

class CifarNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 10)
        for mod in self.modules():
            mod.half()

    def forward(self, x):
        return self.head(x.mean((2, 3)))

def print_training_details(variables, is_final_entry):
    raise AssertionError("the benchmark prints its own lines")

def main(run, model):

    batch_size = 2000
    test_loader = CifarLoader("cifar10", train=False, batch_size=batch_size)
    train_loader = CifarLoader("cifar10", train=True, batch_size=batch_size)
    total_train_steps = ceil(8 * len(train_loader))
    starter = torch.cuda.Event(enable_timing=True)
    ender = torch.cuda.Event(enable_timing=True)
    time_seconds = 0.0
    def start_timer():
        starter.record()
    def stop_timer():
        ender.record()
        torch.cuda.synchronize()
        nonlocal time_seconds
        time_seconds += 1e-3 * starter.elapsed_time(ender)

    model.head.reset_parameters()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for epoch in range(ceil(total_train_steps / len(train_loader))):
        start_timer()
        for i in range(len(train_loader)):
            part = torch.randperm(len(train_loader.images))[:batch_size]
            F.cross_entropy(model(train_loader.images[part]), train_loader.labels[part]).backward()
            model.head.weight.grad.copy_(orthogonal(model.head.weight.grad))
            optimizer.step()
            optimizer.zero_grad()
        stop_timer()
        with torch.no_grad():
            val_acc = (model(test_loader.images).argmax(1) == test_loader.labels).float().mean().item()
        print_training_details(locals(), is_final_entry=False)
    start_timer()
    tta_val_acc = val_acc
    stop_timer()
    epoch = "eval"
    print_training_details(locals(), is_final_entry=True)
    return tta_val_acc

if __name__ == "__main__":
    main("warmup", CifarNet().cuda())
"""
