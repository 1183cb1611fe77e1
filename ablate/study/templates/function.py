"""The training of starter.yaml. The digits stand in for your own data."""

import torch
from sklearn.datasets import load_digits
from torch import nn


def train(settings, context):
    images, labels = (torch.tensor(part).to(context.device) for part in load_digits(return_X_y=True))
    images, held_out = images.float() / 16, 1300  # the last 497 are for validation
    net = network(**settings["model"]).to(context.device)
    optimizer = torch.optim.Adam(net.parameters(), settings["train"]["lr"])
    first, val_acc = 1, 0.0
    if state := context.resume():  # after a kill, or Ctrl-C
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        first, val_acc = state["epoch"] + 1, state["val_acc"]
    for epoch in range(first, settings["train"]["epochs"] + 1):
        torch.manual_seed(context.generator("dropout", epoch).initial_seed())  # the same whether resumed or not
        net.train()
        order = torch.randperm(held_out, generator=context.generator("order", epoch))
        for batch in order.split(settings["train"]["batch"]):
            context.raise_if_stopped()
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            right = net(images[held_out:]).argmax(1) == labels[held_out:]
        val_acc = 100 * right.float().mean().item()
        context.record(epoch=epoch, epochs=settings["train"]["epochs"], val_acc=val_acc)
        state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch, "val_acc": val_acc}
        context.checkpoint(state)
    return {"val_acc": val_acc}


def network(*, width, dropout, batchnorm):
    norm = nn.BatchNorm1d(width) if batchnorm else nn.Identity()
    return nn.Sequential(nn.Linear(64, width), norm, nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 10))
