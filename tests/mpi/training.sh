#!/usr/bin/env bash
# Runs of several processes: the curve of one, the same bits in a repeat, and what becomes of a run when one process is
# killed, fails, or has another config.
# usage: training.sh PROGRAM MPIRUN... NUMBER_FLAG
set -u
program=$1
shift
mpirun=("$@")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

fail() {
  echo "FAILED: $*" >&2
  [[ -f $folder/log ]] && tail -n 40 "$folder/log" >&2
  exit 1
}
# on COUNT ARGUMENTS...: what the processes say goes to a log.
on() {
  local count=$1
  shift
  timeout 120 "${mpirun[@]}" "$count" "$program" "$@" >"$folder/log" 2>&1
}
same_bits() {
  cmp "$folder/$1/checkpoints/step_40/$3" "$folder/$2/checkpoints/step_40/$3" || fail "$3 of $1 and $2 differ"
}

for optimizer in adamw muon; do
  settings=("optimizer={type: $optimizer, lr: 3.0e-3}" trainer.ema=0.9)
  for count in 1 2 3; do
    on $count train "$folder/$optimizer$count" "${settings[@]}" || fail "$optimizer, $count processes"
    "$program" compare "$folder/$optimizer$count" "$folder/${optimizer}1" || fail "the curve of $count processes"
  done
  on 3 train "$folder/again" "${settings[@]}" || fail "$optimizer, again"
  for file in model.safetensors optimizer.safetensors average.safetensors; do same_bits again "${optimizer}3" $file; done
  rm -r "$folder/again"

  # 3 processes, then 2, then 1.
  on 3 train "$folder/parts" stop_after=13 "${settings[@]}" || fail "the first part"
  on 2 train "$folder/parts" stop_after=8 "${settings[@]}" || fail "the second part"
  [[ -d $folder/parts/checkpoints/step_21 ]] || fail "the second part does not end after step 21"
  on 1 train "$folder/parts" "${settings[@]}" || fail "the third part"
  "$program" compare "$folder/parts" "$folder/${optimizer}1" || fail "the curve in parts"
  rm -r "$folder/parts"
done

# A process is killed: all end, and the same command goes on from the last checkpoint.
settings=("optimizer={type: adamw, lr: 3.0e-3}" trainer.ema=0.9)
for rank in 0 2; do
  on 3 train "$folder/killed" kill=$rank:25 "${settings[@]}" && fail "process $rank was killed, and the run ended well"
  on 3 train "$folder/killed" "${settings[@]}" || fail "does not go on after process $rank was killed"
  for file in model.safetensors optimizer.safetensors average.safetensors; do same_bits killed adamw3 $file; done
  cmp "$folder/killed/metrics.csv" "$folder/adamw3/metrics.csv" || fail "the metrics after process $rank was killed"
  rm -r "$folder/killed"
done

# A process throws: the others do not wait for it, and the error says which it was.
on 3 train "$folder/failed" fail=1:5 && fail "process 1 threw, and the run ended well"
grep -q "process 1 of 3 ends all: no more steps" "$folder/log" || fail "the error does not name process 1"
on 2 train "$folder/refused" trainer.batch_size=5 && fail "5 sequences for 2 processes"
grep -q "found 5, expected a multiple of 2" "$folder/log" || fail "the error does not name the batch size"
echo "ok"
