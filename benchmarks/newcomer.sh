#!/usr/bin/env bash
# Times what the README tells a newcomer: a fresh clone, a fresh environment, the demo, the first scan of a network of his own.
# Usage: benchmarks/newcomer.sh [FOLDER]; PYTHON (default python3) makes the environment, BACKSWEEP the network beforehand (.venv here).
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
place=${1:-$(mktemp -d)}
mkdir -p "$place/own"
cd "$place"

# the newcomer's own network: his code, his weights, his images (not timed)
cat > own/nets.py <<'PY'
from torch import nn


def build():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 16, 10),
    )
PY
(cd own && "${BACKSWEEP:-$source/.venv/bin/python}" - <<'PY'
import numpy as np, torch
from nets import build
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn import functional as F

torch.manual_seed(7)
digits = load_digits()
x, y = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.tensor(digits.target)
net = build()
steps = torch.optim.Adam(net.parameters(), 2e-3)
for _ in range(600):
    i = torch.randint(1000, (64,))
    steps.zero_grad()
    F.cross_entropy(net(x[i]), y[i]).backward()
    steps.step()
print(f"own network: accuracy {(net(x[1000:]).argmax(1) == y[1000:]).float().mean():.1%}")
save_file(net.state_dict(), "model.safetensors")
np.savez("data.npz", x=np.uint8((x[1000:] * 255).round()), y=digits.target[1000:])
PY
)

begin=$SECONDS
step() { local now=$SECONDS; "$@" >> log.txt 2>&1 || [ "$1" != make ] || { tail log.txt; exit 1; }; echo "$((SECONDS - now)) s  $*"; }
echo "load before: $(cut -d' ' -f1 /proc/loadavg 2>/dev/null)"
step git clone -q "$source" backsweep
step make -C backsweep .venv/.run ${PYTHON:+PYTHON=$PYTHON}
step make -C backsweep demo
cd own
PATH=$place/backsweep/.venv/bin:$PATH
step backsweep scan model.safetensors --arch nets:build --data data.npz --out report
test -f report/report.html
echo "$((SECONDS - begin)) s  in all; load after: $(cut -d' ' -f1 /proc/loadavg 2>/dev/null)"
times
