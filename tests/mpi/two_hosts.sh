#!/usr/bin/env bash
# Two processes on two hosts, which are two network namespaces of this one: the cable between them is cut, and all end
# within 30 s. Needs root and Open MPI; 77 where these are not.
# usage: two_hosts.sh PROGRAM MPIRUN
set -u
program=$1 mpirun=$2
folder=$(mktemp -d)
one=heddle_mpi_$$_1 two=heddle_mpi_$$_2
clean_up() {
  for host in $one $two; do
    ip netns pids $host 2>/dev/null | xargs -r kill -9
    ip netns del $host 2>/dev/null
  done
  rm -rf "$folder"
}
trap clean_up EXIT

skip() { echo "skipped: $*"; exit 77; }
fail() {
  echo "FAILED: $*" >&2
  tail -n 40 "$folder/log" >&2
  exit 1
}

"$mpirun" --version 2>/dev/null | grep -q "Open MPI" || skip "no Open MPI"
ip netns add $one 2>/dev/null && ip netns add $two && ip link add eth7 netns $one type veth peer name eth7 netns $two ||
  skip "no network namespaces"
for host in 1 2; do
  [[ $host == 1 ]] && name=$one || name=$two
  ip -n $name link set lo up && ip -n $name addr add 10.123.8.$host/24 dev eth7 && ip -n $name link set eth7 up ||
    skip "no addresses"
done

# What Open MPI takes for ssh: the host, then the command.
printf '#!/bin/sh\nshift\nexec ip netns exec %s sh -c "$*"\n' $two >"$folder/agent"
chmod +x "$folder/agent"
ip netns exec $one "$mpirun" --allow-run-as-root --mca plm_rsh_agent "$folder/agent" --mca btl tcp,self \
  --mca oob_tcp_if_include eth7 --mca btl_tcp_if_include eth7 \
  --mca oob_tcp_keepalive_time 5 --mca oob_tcp_keepalive_intvl 5 --mca oob_tcp_keepalive_probes 3 \
  -H 10.123.8.1:1,10.123.8.2:1 -n 2 "$program" train "$folder/run" trainer.steps=100000000 trainer.checkpoint_every=5 \
  >"$folder/log" 2>&1 &
pid=$!
for ((i = 0; i < 600; ++i)); do
  compgen -G "$folder/run/checkpoints/step_*" >/dev/null && break
  sleep 0.1
done
compgen -G "$folder/run/checkpoints/step_*" >/dev/null || fail "there is no training to be cut off"

ip -n $two link set eth7 down
start=$SECONDS
for ((i = 0; i < 400; ++i)); do
  [[ -z $(ip netns pids $one)$(ip netns pids $two) ]] && break
  sleep 0.1
done
[[ -z $(ip netns pids $one)$(ip netns pids $two) ]] || fail "processes are left after 40 s"
wait $pid && fail "mpirun ended well"
((SECONDS - start <= 30)) || fail "all ended after $((SECONDS - start)) s"
echo "all ended after $((SECONDS - start)) s"
