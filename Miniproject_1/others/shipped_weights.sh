#!/bin/sh
# The runs that made bestmodel.pth, each from the weights of the one before. From the project's root:
#
#     sh Miniproject_1/others/shipped_weights.sh PHOTOS FOLDER
#
# FOLDER/bestmodel.pth is the result: a mean of the weights of the last two runs, with limited gates.
# Stopped, the script goes on when it is started again. The code changed between the runs (to draw other noise, to train
# on negatives, to grow by copies), and of the seeds only those of runs 2 and 7 to 14 are recorded: the result has other
# bits than bestmodel.pth.
#
# In runs 2 and 5 the new blocks began as the identity, and every hidden unit of all three of them died;
# run 6 began them again as copies. It ruined large flat pictures, since it met images of 32 x 32 alone: run 7 has larger
# ones.
# The larger network of run 9 failed on large flat pictures again; run 10 has larger pairs, half of those with other
# noise flat, and so has run 11. The first 40,000 pairs of run 9 were on a schedule of 400,000, the first 80,000 of
# run 11 on one of 280,000, the first 40,000 of run 12 on one of 220,000. Run 13 had half as many large pairs, and gained
# 0.011 dB, but shifted flat saturated colours by 9 grey values instead of 6, with which run 14 helps a little.
set -eu
photos=$1
folder=$2

best() {
    "${PYTHON:-python}" -m Miniproject_1.others.train_best "$photos" "$@"
}

mean() { # OUT LATER EARLIER SHARE: the mean of the weights of two files, the earlier one with this share
    "${PYTHON:-python}" - "$@" <<'END'
import sys

from Miniproject_1.model import Model, read_weights

out, later, earlier, share = sys.argv[1:]
model, other = Model(), read_weights(earlier)["weights"]
model.load(later)
for name, values in model.network.state_dict().items():
    values.lerp_(other[name], float(share))
model.save(out)
END
}

best --out "$folder/run1.pth" --pairs 360000 --width 48 --blocks 2 --inner-blocks 2 --draws 8 \
    --batch-size 16 --muon-lr 4e-3 --adam-lr 5e-3 --ema-decay 0.995 --variance-floor 0.002

best --out "$folder/run2.pth" --start "$folder/run1.pth" --pairs 420000 --blocks 3 --gates --draws 8 --seed 41 \
    --batch-size 32 --muon-lr 4e-3 --adam-lr 5e-3 --ema-decay 0.998 --variance-floor 0.002

best --out "$folder/run3.pth" --start "$folder/run2.pth" --pairs 100000 --draws 32 --inputs 8 \
    --batch-size 32 --muon-lr 2.5e-3 --adam-lr 3e-3 --ema-decay 0.995 --variance-floor 0.001

best --out "$folder/run4.pth" --start "$folder/run3.pth" --pairs 400000 --draws 32 --inputs 8 --other-noise 0.125 \
    --batch-size 32 --muon-lr 2.5e-3 --adam-lr 3e-3 --ema-decay 0.995 --variance-floor 0.001

best --out "$folder/run5.pth" --start "$folder/run4.pth" --pairs 540000 --draws 32 --inputs 8 --other-noise 0.0625 \
    --inner-blocks 3 \
    --batch-size 32 --muon-lr 2.5e-3 --adam-lr 3e-3 --ema-decay 0.998 --variance-floor 0.001

best --out "$folder/run6.pth" --start "$folder/run5.pth" --pairs 300000 --draws 32 --inputs 8 --other-noise 0.0625 \
    --revive \
    --batch-size 32 --muon-lr 2e-3 --adam-lr 1e-3 --ema-decay 0.998 --variance-floor 0.001

best --out "$folder/run7.pth" --start "$folder/run6.pth" --pairs 440000 --draws 32 --inputs 8 --other-noise 0.0625 \
    --revive --large 0.0625 --seed 8 \
    --batch-size 32 --muon-lr 1.5e-3 --adam-lr 1e-3 --ema-decay 0.998 --variance-floor 0.001

best --out "$folder/run8.pth" --start "$folder/run7.pth" --pairs 340000 --draws 32 --inputs 8 --other-noise 0.0625 \
    --blocks 4 --inner-blocks 4 --revive --large 0.0625 --seed 10 \
    --batch-size 32 --muon-lr 2e-3 --adam-lr 1e-3 --ema-decay 0.998 --variance-floor 0.001

best --out "$folder/run9.pth" --start "$folder/run8.pth" --pairs 320000 --draws 32 --inputs 8 --other-noise 0.0625 \
    --blocks 5 --inner-blocks 5 --revive --large 0.0625 --seed 11 \
    --batch-size 32 --muon-lr 2e-3 --adam-lr 1e-3 --ema-decay 0.998 --variance-floor 0.001

best --out "$folder/run10.pth" --start "$folder/run9.pth" --pairs 16000 --round 16000 --draws 32 --inputs 8 \
    --other-noise 0.0625 --large 0.25 --large-side 160 --flat 1 --seed 12 \
    --batch-size 32 --muon-lr 4e-4 --adam-lr 2e-4 --ema-decay 0.98 --variance-floor 0.001

best --out "$folder/run11.pth" --start "$folder/run10.pth" --pairs 460000 --draws 32 --inputs 8 --other-noise 0.0625 \
    --revive --large 0.125 --large-side 160 --flat 1 --seed 13 \
    --batch-size 32 --muon-lr 1.5e-3 --adam-lr 1e-3 --ema-decay 0.998 --variance-floor 0.001

best --out "$folder/run12.pth" --start "$folder/run11.pth" --pairs 160000 --draws 32 --inputs 8 --other-noise 0.0625 \
    --large 0.125 --large-side 160 --flat 1 --seed 14 \
    --batch-size 32 --muon-lr 6e-4 --adam-lr 3e-4 --ema-decay 0.998 --variance-floor 0.001

mean "$folder/mean12.pth" "$folder/run12.pth" "$folder/run11.pth" 0.3

best --out "$folder/run13.pth" --start "$folder/mean12.pth" --pairs 320000 --draws 32 --inputs 8 --other-noise 0.0625 \
    --large 0.0625 --large-side 160 --flat 1 --seed 15 \
    --batch-size 32 --muon-lr 7e-4 --adam-lr 3.5e-4 --ema-decay 0.998 --variance-floor 0.001

best --out "$folder/run14.pth" --start "$folder/run13.pth" --pairs 16000 --round 16000 --draws 32 --inputs 8 \
    --other-noise 0.0625 --large 0.25 --large-side 160 --flat 1 --seed 16 \
    --batch-size 32 --muon-lr 3e-4 --adam-lr 1.5e-4 --ema-decay 0.98 --variance-floor 0.001

mean "$folder/mean.pth" "$folder/run14.pth" "$folder/run13.pth" 0.5
"${PYTHON:-python}" -m Miniproject_1.others.limit_gates "$photos" "$folder/mean.pth" --out "$folder/bestmodel.pth"
