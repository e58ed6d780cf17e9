#!/usr/bin/env bash
# The first minutes on a GPU, offline, in two visits of one command each:
#
#     python benchmarks/gpu_variants.py      before, without a GPU, with the Python of its machine
#     benchmarks/gpu_check.sh 1 [FOLDER]     7 minutes: is it right, and how fast is everything?
#     benchmarks/gpu_check.sh 2 [FOLDER]     4 minutes: is it right now, and faster than before?
#     benchmarks/gpu_check.sh 0 [FOLDER]     a rehearsal without a GPU, small and emulated
#
# FOLDER is $OUT, or else build/gpu_check. It comes to hold six files: <device>.json, to be put into
# benchmarks/results, run.log, profiles.txt, ncu.csv, sanitizer.log and tests.log. Take build/gpu
# along, from where the modules and their variants are loaded; without it, or where that does not
# load, the first stage builds. For visit 2 build again with --first build/gpu/base/_C_cuda.*.so of
# the first visit, kept elsewhere in between.
#
# A stage may take what is left less the caps of those after it: what one saves goes to the next,
# and one that hangs costs the others nothing. The last lines are tables and every failure. Exits
# with 1 if a stage failed.
set -uo pipefail
cd "$(dirname "$0")/.."
visit=${1:?"say which visit: 1 or 2, or 0 for a rehearsal"}
out=$(realpath -m "${2:-${OUT:-build/gpu_check}}")
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin"

rehearsed=()
case $visit in # seconds of all, then stage:cap
  0) limit=600 stages=(agree:150 ops:150 variants:150 step:150) rehearsed=(--emulate) ;;
  1) limit=405 stages=(load:60 agree:45 ops:55 variants:65 step:60 memcheck:35 ncu:30 tests:55) ;;
  2) limit=235 stages=(load:20 agree:25 variants:50 step:30 racecheck:40 ops:25 dalle:10 tests:35) ;;
  *) echo "there are visits 0, 1 and 2, not $visit" && exit 2 ;;
esac

load() { # the modules that came along, those that are here, or a build for this GPU
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit \
    --format=csv,noheader
  cp build/gpu/base/_C_*.so vimpac_kernels/ 2> /dev/null
  if ! python3 benchmarks/gpu_agreement.py --scale load; then
    arch=$(python3 -c 'import torch
major, minor = torch.cuda.get_device_capability()
print(f"{major}.{minor}" + "a" * (major == 9))') || return 1
    TORCH_CUDA_ARCH_LIST=$arch python3 setup.py build_ext --inplace | tail -n 5 &&
      python3 benchmarks/gpu_agreement.py --scale load
  fi
}

# Our kernels alone: those of cuBLAS and torch take most of the time and have reports of their own.
# Failed API calls are left to the tests, as libraries probe the driver with some that may fail.
sanitize() {
  local ops
  ops=$(python3 -c 'import vimpac_kernels; print("|".join(vimpac_kernels.OPS))') || return 1
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 \
    --report-api-errors no --kernel-name "regex=vimpac|$ops" \
    python3 benchmarks/gpu_agreement.py --scale small --impl cuda >> "$out/sanitizer.log" 2>&1
  local status=$?
  tail -n 2 "$out/sanitizer.log"
  return $status
}

counters() { # of the heaviest kernels; the card's clocks are left as they are
  local metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum
  metrics+=,lts__t_sectors_op_read.sum,lts__t_sectors_op_write.sum,smsp__inst_executed.sum
  metrics+=,smsp__issue_active.avg.pct_of_peak_sustained_active
  metrics+=,sm__warps_active.avg.pct_of_peak_sustained_active,l1tex__t_sector_hit_rate.pct
  metrics+=,l1tex__data_bank_conflicts_pipe_lsu.sum
  metrics+=,smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio
  metrics+=,smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio
  metrics+=,launch__registers_per_thread,launch__occupancy_limit_registers
  ncu --clock-control none --profile-from-start off --csv --page raw --metrics "$metrics" \
    --kernel-name 'regex:(axial_attention|dropout_add_layer_norm)_(fwd|bwd)_kernel|bias_gelu_bwd_kernel|linear_cross_entropy_fwd_kernel' \
    --log-file "$out/ncu.csv" python3 benchmarks/gpu_ops.py "$out" ncu
}

tests() { # only files with tests for a GPU: others need packages that kernels do not
  local files some=()
  mapfile -t files < <(grep -rlwE --include='test_*.py' 'impl|gpu' tests | sort)
  if ((visit == 1)); then some=(-k 'not compiles and not full_graph and not 2_to_the_31'); fi
  if python3 -c 'import xdist' 2> /dev/null; then some+=(-n "$(nproc)"); fi # Triton compiles
  OMP_NUM_THREADS=1 python3 -m pytest -q -p no:cacheprovider --continue-on-collection-errors \
    "${files[@]}" -m gpu "${some[@]}" > "$out/tests.log" 2>&1
  local status=$?
  grep -E '^(FAILED|ERROR)' "$out/tests.log" | sed 's/^/FAIL /'
  tail -n 1 "$out/tests.log"
  return $status
}

stage() {
  case $1 in
    load) load ;;
    agree) python3 benchmarks/gpu_agreement.py "${rehearsed[@]}" ;;
    ops) python3 benchmarks/gpu_ops.py "$out" ops "${rehearsed[@]}" ;;
    variants) python3 benchmarks/gpu_ops.py "$out" variants "${rehearsed[@]}" ;;
    step) python3 benchmarks/gpu_step.py "$out" "${rehearsed[@]}" ;;
    dalle) python3 benchmarks/dalle_encode.py --device cuda --frames 512 ;;
    memcheck | racecheck) sanitize "$1" ;;
    ncu) counters ;;
    tests) tests ;;
  esac
}

if [[ ${STAGE:-} ]]; then stage "$STAGE"; exit; fi # this script again, under a time limit
: > "$out/run.log"
later=0
for entry in "${stages[@]}"; do later=$((later + ${entry#*:})); done
for entry in "${stages[@]}"; do
  name=${entry%:*} start=$SECONDS
  later=$((later - ${entry#*:}))
  seconds=$((limit - SECONDS - later))
  STAGE=$name timeout --kill-after=5 "$((seconds > 5 ? seconds : 5))" \
    bash "benchmarks/${0##*/}" "$visit" "$out" 2>&1 | tee -a "$out/run.log"
  printf '\nSTAGE %s %s %s %s\n' "$visit" "$name" "${PIPESTATUS[0]}" $((SECONDS - start)) >> "$out/run.log"
done
timeout 20 python3 benchmarks/gpu_summary.py "$out"
