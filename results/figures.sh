#!/usr/bin/env bash
# Draws the figures and tables of results/ from the CSVs there:  bash results/figures.sh [folder ...]
set -euo pipefail
cd "$(dirname "$0")/.."

draw() {  # runs..., then options
    echo "-- ${*: -1}"
    python plot_curves.py "$@" > /dev/null
}

awac() {
    local H=results/awac/runs/Hopper-v4
    local runs=("$H"/online_finetune_sac* "$H"/awac* "$H"/awr*15000 "$H"/bear*)
    draw "${runs[@]}" "$H"/offline_pretrain_sac* --x total --out results/awac/return
    draw "${runs[@]}" "$H"/offline_pretrain_sac* --x total --metric eval/q_bias --out results/awac/q_bias
    rm results/awac/return*.csv  # the same as curves.csv
    draw "${runs[@]}" "$H"/awr*ratio-0.0 "$H"/td3_bc* --split --out results/awac/curves
}

methods() {  # ten seeds of four methods, two seeds of the others; until 10k steps
    local H=results/awac/runs/Hopper-v4
    draw "$H"/online_finetune_sac* "$H"/awac* "$H"/awr*15000 "$H"/bear* results/td3/second results/iql_awac/second \
        results/cql/second results/o3f/second --split --until 10000 \
        --label 'AWAC' --label 'AWR' --label 'BEAR' --label 'SAC finetuned, layer norm*' --label 'TD3 online' --label 'TD3-C online*' \
        --label 'IQL online' --label 'CQL online' --label '*best of 100' \
        --rename 'online_finetune_sac-medium-replay-online-steps-15000-from-offline_pretrain_sac-8663=SAC' \
        --rename 'TD3 online=TD3' --rename 'TD3-C online, epsilon 1e-05=TD3-C' --rename 'IQL online=IQL' \
        --rename 'CQL online=CQL' --rename 'O3F (LAPO) online, best of 100=O3F' --out results/methods
}

chapter() {
    local H=results/chapter/runs/Hopper-v4
    local finetuned=("$H"/online_finetune_sac-medium-replay-from*) rows=("$H"/online_finetune_sac-offline-ratio-0*)
    local others=("$H"/sac_scratch* "$H"/*q-filter*)
    local names=(--rename 'SAC finetuned=pretrained, finetuned')
    local row_names=(--rename 'SAC finetuned, online rows only=finetuned, online rows only')
    local other_names=(--rename 'SAC from scratch=from scratch'
        --rename 'SAC from scratch with data, offline ratio 0.5=from scratch, half of each batch offline rows'
        --rename 'SAC finetuned, Q-filter 25=finetuned, Q-filter 25')
    for step in 25000 45000 50000 100000; do
        draw "${finetuned[@]}" "${rows[@]}" "${others[@]}" "${names[@]}" "${row_names[@]}" "${other_names[@]}" \
            --until "$step" --out results/chapter/at$step
    done
    draw "${finetuned[@]}" "${others[@]}" "${names[@]}" "${other_names[@]}" --out results/chapter/return
    draw "${finetuned[@]}" "${rows[@]}" "${names[@]}" "${row_names[@]}" --out results/chapter/rows
    rm results/chapter/at*.png results/chapter/{return,rows}*.csv  # all rows are in at100000.csv
    draw results/chapter/first --label 'SAC finetuned*' --label 'SAC from scratch*' \
        --rename 'SAC finetuned=finetuned' --rename 'SAC finetuned, Q-filter 25=finetuned, Q-filter 25' \
        --rename 'SAC from scratch=from scratch, weak settings' --out results/chapter/first/curves
}

sac() {
    draw results/sac/runs --split --label 'SAC pretrained' --label 'SAC from scratch*' \
        --label 'SAC finetuned' --label 'SAC finetuned, Q-filter 25' --label 'SAC finetuned, online rows only*' \
        --rename 'SAC finetuned, Q-filter 25=SAC, Q-filter 25' \
        --rename 'SAC finetuned, online rows only=SAC, online rows only' \
        --rename 'SAC finetuned, online rows only, Q-filter 25=SAC, online rows only, Q-filter 25' \
        --rename 'SAC from scratch with data, offline ratio 0.5=SAC from scratch, half of each batch offline rows' \
        --out results/sac/curves
    draw results/sac/runs2 --split --rename 'SAC finetuned, Q-filter 25=SAC, Q-filter 25' --out results/sac/second_house
    draw results/sac/scratch --split --rename 'SAC from scratch=SAC default' \
        --rename 'SAC from scratch, layer norm 1=SAC with LayerNorm' \
        --rename 'SAC from scratch, critic lr 0.0003, alpha lr 0.0003=SAC with rates 3e-4' \
        --rename "SAC from scratch, policy delay 2=SAC with CleanRL's policy schedule" \
        --out results/sac/scratch/curves
    draw results/sac/runs --split --label 'SAC finetuned' --label 'SAC finetuned, Q-filter*' \
        --rename 'SAC finetuned=SAC without filter' --rename 'SAC finetuned, Q-filter 10=SAC, Q-filter 10' \
        --rename 'SAC finetuned, Q-filter 25=SAC, Q-filter 25' --rename 'SAC finetuned, Q-filter 50=SAC, Q-filter 50' \
        --rename 'SAC finetuned, Q-filter 75=SAC, Q-filter 75' \
        --rename 'SAC finetuned, Q-filter 25, q filter weight 0.1=SAC, Q-filter 25, weight 0.1' \
        --rename "SAC finetuned, Q-filter 25, q filter actions policy=SAC, Q-filter 25, policy's actions" \
        --out results/sac/qfilter
    draw results/sac/runs --split --label 'SAC finetuned' --label 'SAC finetuned, offline ratio*' \
        --label 'SAC finetuned, online rows only' \
        --rename 'SAC finetuned=SAC, all rows alike' --rename 'SAC finetuned, online rows only=SAC, online rows only' \
        --rename 'SAC finetuned, offline ratio 0.25=SAC, offline rows 25%' \
        --rename 'SAC finetuned, offline ratio 0.5=SAC, offline rows 50%' \
        --rename 'SAC finetuned, offline ratio 0.5 to 0=SAC, offline rows 50% falling to 0%' \
        --rename 'SAC finetuned, offline ratio 0.75=SAC, offline rows 75%' \
        --out results/sac/ratio
}

medium() {
    draw results/medium/runs --split --rename 'TD3 online=TD3' --rename 'TD3+BC online=TD3-BC' \
        --rename 'TD3-C online, epsilon 0.001=TD3-C, epsilon 1e-3' --rename 'TD3-C online, epsilon 1e-05=TD3-C, epsilon 1e-5' \
        --out results/medium/curves
}

td3c() {  # the three arms, rows kept, then dropped: checkpoints 60d5 are medium's, b5c9 medium-replay's
    local H=results/td3c/runs/Hopper-v4 start data=medium
    for start in 60d5 b5c9; do
        draw "$H"/*"$start" --split --rename 'TD3 online=TD3' --rename 'TD3+BC online=TD3-BC' \
            --rename 'TD3-C online, epsilon 1e-05=TD3-C' --rename 'TD3 online, online rows only=TD3, rows dropped' \
            --rename 'TD3+BC online, online rows only=TD3-BC, rows dropped' \
            --rename 'TD3-C online, online rows only, epsilon 1e-05=TD3-C, rows dropped' --out "results/td3c/$data"
        data=medium-replay
    done
}

halfcheetah() {
    draw results/halfcheetah/runs --split --label 'SAC from scratch' --label '*online*' \
        --rename 'SAC from scratch=SAC from scratch' --rename 'TD3 online=TD3' --rename 'TD3+BC online=TD3-BC' \
        --rename 'TD3 online, online rows only=TD3, online rows only' \
        --rename 'TD3-C online, epsilon 0.001=TD3-C, epsilon 1e-3' --rename 'TD3-C online, epsilon 1e-05=TD3-C, epsilon 1e-5' \
        --rename 'IQL online=IQL' --rename 'AWAC online=AWAC' --out results/halfcheetah/curves
}

td3() {
    draw results/td3/runs --split --rename 'TD3 online=TD3' --rename 'TD3+BC online=TD3-BC' \
        --rename 'TD3-C online, epsilon 0.001=TD3-C, epsilon 1e-3' --rename 'TD3-C online, epsilon 1e-05=TD3-C, epsilon 1e-5' \
        --out results/td3/curves
    draw results/td3/second --split --rename 'TD3 online=TD3' \
        --rename 'TD3-C online, epsilon 1e-05=TD3-C, epsilon 1e-5' --out results/td3/second_version
    draw results/td3/dual/runs --metric constraint/distance \
        --label '*from-td3_bc-offline50k-online20k' --label '*online20k-dual-lr*' --label '*actor-lr*' \
        --rename "td3_c-medium-replay-from-td3_bc-offline50k-online20k=TD3-C, lambda's rate 1e-2" \
        --rename "td3_c-medium-replay-from-td3_bc-offline50k-online20k-dual-lr0.001=TD3-C, lambda's rate 1e-3" \
        --rename "td3_c-medium-replay-from-td3_bc-offline50k-actor-lr3e-05-online12k-dual-lr0.001=TD3-C, lambda's rate 1e-3, policy's rate 3e-5" \
        --out results/td3/dual/distance
}

random() {
    draw results/random/runs results/sac/runs/Hopper-v4/sac_scratch-online15k --split --rename 'TD3 online=TD3+BC, then TD3' \
        --rename 'SAC from scratch with data, offline ratio 0.5=SAC from scratch, half of each batch random data' \
        --out results/random/curves
}

cql() {
    local these=(results/cql/runs --label 'CQL pretrained' --label 'CQL online' --label 'SAC finetuned'
        --rename 'CQL online=CQL to CQL' --rename 'SAC finetuned=CQL to SAC')
    draw "${these[@]}" --out results/cql/curves
    draw "${these[@]}" --x total --out results/cql/return
    draw "${these[@]}" --x total --metric eval/q_bias --out results/cql/q_bias
    draw "${these[@]}" --x total --metric loss/critic --out results/cql/critic_loss
    draw results/cql/runs/Hopper-v4/*/seed1 --label 'CQL online*' --label 'SAC finetuned' \
        --rename 'CQL online=CQL, weight 5' --rename 'CQL online, cql alpha 5 to 0, linear=CQL, weight 5 to 0 linearly' \
        --rename 'CQL online, cql alpha 5 to 0, abrupt=CQL, weight 0 at once' --rename 'SAC finetuned=SAC' \
        --out results/cql/annealing
    draw results/cql/second --x total --rename 'CQL online=CQL to CQL' --rename 'SAC finetuned=CQL to SAC' \
        --out results/cql/second_version
}

iql_awac() {
    draw results/iql_awac/runs --split --label 'AWAC online, awac lambda 1' --label 'IQL online, 2 critics' --label 'IQL online, best of*' \
        --rename 'AWAC online, awac lambda 1=AWAC' --rename 'IQL online, 2 critics=IQL' \
        --rename 'IQL online, best of 1, 5 critics=IQL, 5 critics, one noisy draw' \
        --rename 'IQL online, best of 100, 5 critics=IQL, 5 critics, best of 100 draws' \
        --rename 'IQL online, best of 100, 5 critics, optimism 1=IQL, 5 critics, best of 100 draws, omega 1' \
        --out results/iql_awac/curves
    draw results/iql_awac/runs --split --label 'AWAC online*' --label 'IQL online, 2 critics*' \
        --rename 'AWAC online, awac lambda 1=AWAC, lambda 1' --rename 'IQL online, 2 critics=IQL, expectile 0.7' \
        --rename 'AWAC online, awac lambda 1 to 0.1, abrupt=AWAC, lambda falls abruptly to 0.1' \
        --rename 'AWAC online, awac lambda 1 to 0.1, linear=AWAC, lambda falls linearly to 0.1' \
        --rename 'IQL online, 2 critics, expectile 0.7 to 0.85, abrupt=IQL, expectile rises abruptly to 0.85' \
        --rename 'IQL online, 2 critics, expectile 0.7 to 0.85, linear=IQL, expectile rises linearly to 0.85' \
        --out results/iql_awac/annealing
}

o3f() {
    local these=(results/o3f/runs --split --rename 'O3F (LAPO) online, best of 1=LAPO, one noisy draw'
        --rename 'O3F (LAPO) online, best of 100=O3F, best of 100'
        --rename 'O3F (LAPO) online, best of 100, policy updates per step 5=O3F, 5 policy updates a step'
        --rename 'O3F (LAPO) online, best of 100, subset size 5=O3F, minimum over all 5 critics')
    draw "${these[@]}" --rename 'O3F (LAPO) pretrained=LAPO pretrained' --out results/o3f/curves
    draw "${these[@]}" --metric collect/return --out results/o3f/collect_return
    draw results/o3f/second --rename 'O3F (LAPO) online, best of 1=LAPO, one noisy draw' \
        --rename 'O3F (LAPO) online, best of 100=O3F, best of 100' --rename 'O3F (LAPO) pretrained=LAPO pretrained' \
        --out results/o3f/second_version
}

rlpd() {
    local scratch='SAC from scratch' data='SAC from scratch with data, offline ratio 0.5'
    draw results/rlpd/runs --split --rename "$data, 10 critics, critic subset 2=RLPD: 20 updates a step, ten critics" \
        --rename "$data=20 updates a step, two critics" --rename "$scratch=20 updates a step, two critics, no data" \
        --rename "$data, policy delay 1, updates per step 1=one update a step, two critics" --out results/rlpd/curves
}

for folder in "${@:-}"; do
    for one in ${folder:-methods awac chapter sac medium td3c halfcheetah td3 random cql iql_awac o3f rlpd}; do
        "$one"
    done
done
find results -name '*.svg' -delete  # the pages show PNGs
