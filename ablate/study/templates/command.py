"""A training script that knows nothing of ablate. The digits stand in for your own data."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.02)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--width", type=int, default=16)
parser.add_argument("--batch-norm", action="store_true")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

torch.manual_seed(args.seed)
torch.set_num_threads(1)  # other counts give other bits
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float()
train, val = torch.arange(1300), torch.arange(1300, 1797)
norm = nn.BatchNorm1d(args.width) if args.batch_norm else nn.Identity()
model = nn.Sequential(nn.Linear(64, args.width), norm, nn.ReLU(), nn.Linear(args.width, 10))
optimizer = torch.optim.SGD(model.parameters(), args.lr)
for epoch in range(1, args.epochs + 1):
    model.train()
    for batch in train[torch.randperm(len(train))].split(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    model.eval()
    accuracy = (model(images[val]).argmax(1) == labels[val]).float().mean()
    print(f"epoch {epoch}: validation accuracy {100 * accuracy:.2f}", flush=True)
