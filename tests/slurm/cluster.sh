#!/usr/bin/env bash
# A small real SLURM on this machine's loopback, for tests: as root, on Debian, without systemd.
#
#   cluster.sh up           install what is missing (slurmctld, slurmd, munge) and start it; a second call returns at once
#   cluster.sh down         stop everything that `up` started, and remove its state
#   cluster.sh kill NODE    the node is gone: its slurmd, its step daemons and what they ran are killed
#   cluster.sh start NODE   the node is back
#
# CPUS=16 MEM_MB=131072 GPUS=2: what each node claims to have; it need not exist. The GPUs are device files like
# /dev/null, and jobs see CUDA_VISIBLE_DEVICES. Partitions: gpu, of nodes n1 and n2; fragile, of n3; preempt, of n4, whose
# jobs give way to those of urgent. BASE: folder of configuration, state, logs, pids.
set -euo pipefail
NODES=4 CPUS=${CPUS:-16} MEM_MB=${MEM_MB:-131072} GPUS=${GPUS:-2}
BASE=${BASE:-${TMPDIR:-/tmp}/kdtrans-slurm}
HOST=$(hostname -s)
export SLURM_CONF=$BASE/etc/slurm.conf

say() { printf 'cluster.sh: %s\n' "$*" >&2; }
alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

# Ends what a pid file names: by TERM, and after ten seconds by KILL.
stop() {
  [ -s "$1" ] || return 0
  local pid
  pid=$(cat "$1")
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  kill -KILL "$pid" 2>/dev/null || true
  rm -f "$1"
}

install_packages() {
  local missing=()
  for command in slurmctld slurmd sbatch munged; do command -v $command >/dev/null || missing+=("$command"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || { say "NOT RUN: ${missing[*]} are not installed, and this is no Debian"; exit 77; }
  say "installing slurmctld, slurmd, slurm-client, munge"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge; } \
    >"$BASE/log/apt.log" 2>&1 || { tail -5 "$BASE/log/apt.log" >&2; say "NOT RUN: no packages to be had"; exit 77; }
}

configure() {
  for ((gpu = 0; gpu < GPUS; gpu++)); do
    [ -c "$BASE/dev/gpu$gpu" ] || mknod -m 666 "$BASE/dev/gpu$gpu" c 1 3 2>/dev/null \
      || { say "NOT RUN: no right to make device files"; exit 77; }
  done
  cat >"$SLURM_CONF" <<CONF
ClusterName=kdtest
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$BASE/run/munge.socket,cred_expire=5
SlurmctldPidFile=$BASE/run/slurmctld.pid
SlurmdPidFile=$BASE/run/slurmd.%n.pid
SlurmctldLogFile=$BASE/log/slurmctld.log
SlurmdLogFile=$BASE/log/slurmd.%n.log
StateSaveLocation=$BASE/state
SlurmdSpoolDir=$BASE/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmctldTimeout=20
SlurmdTimeout=10
InactiveLimit=0
KillWait=10
MinJobAge=14400
OverTimeLimit=0
UnkillableStepTimeout=20
CompleteWait=0
NodeName=DEFAULT CPUs=$CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEM_MB Gres=gpu:fake:$GPUS
NodeName=n[1-$NODES] NodeHostname=$HOST NodeAddr=127.0.0.1 Port=[17001-$((17000 + NODES))]
PartitionName=DEFAULT MaxTime=2-00:00:00 PriorityTier=10 PreemptMode=OFF
PartitionName=gpu Nodes=n[1-2] Default=YES
PartitionName=fragile Nodes=n3
PartitionName=urgent Nodes=n4
PartitionName=preempt Nodes=n4 PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
CONF
  echo "NodeName=n[1-$NODES] Name=gpu Type=fake File=$BASE/dev/gpu[0-$((GPUS - 1))]" >"$BASE/etc/gres.conf"
  printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$BASE/etc/cgroup.conf"
  # A job's srun finds it there: Snakemake takes SLURM_CONF from its jobs' environment.
  install -d /etc/slurm
  for file in "$BASE"/etc/*.conf; do
    [ -e "/etc/slurm/${file##*/}" ] && [ ! -L "/etc/slurm/${file##*/}" ] \
      && { say "NOT RUN: this machine has an /etc/slurm/${file##*/} of its own"; exit 77; }
    ln -sfn "$file" "/etc/slurm/${file##*/}"
  done
}

start_munge() {
  alive "$BASE/run/munged.pid" && return 0
  [ -s "$BASE/etc/munge.key" ] || (umask 077; dd if=/dev/urandom of="$BASE/etc/munge.key" bs=1024 count=1 status=none)
  munged --force --key-file="$BASE/etc/munge.key" --socket="$BASE/run/munge.socket" --pid-file="$BASE/run/munged.pid" \
    --log-file="$BASE/log/munged.log" --seed-file="$BASE/run/munged.seed"
}

nodes_up() { timeout 5 sinfo -h -N -p gpu,fragile,urgent -o %T 2>/dev/null | grep -cE '^(idle|mixed|allocated)$' || true; }

up() {
  [ "$(id -u)" = 0 ] || { say "NOT RUN: a SLURM of its own needs root"; exit 77; }
  install -d -m 755 "$BASE" "$BASE"/{etc,run,log,state,spool,dev}
  install_packages
  alive "$BASE/run/slurmctld.pid" || configure
  start_munge
  alive "$BASE/run/slurmctld.pid" || slurmctld
  for ((i = 1; i <= NODES; i++)); do
    install -d -m 755 "$BASE/spool/n$i"
    alive "$BASE/run/slurmd.n$i.pid" || slurmd -N "n$i"
  done
  for _ in $(seq 200); do
    [ "$(nodes_up)" = "$NODES" ] && { say "up: $NODES nodes of $CPUS CPUs and $GPUS fake GPUs"; return 0; }
    sleep 0.2
  done
  grep -hE 'fatal|error' "$BASE"/log/slurm*.log | tail -8 >&2 || true
  say "the cluster did not come up"
  return 1
}

down() {
  timeout 10 scancel -u root 2>/dev/null || true
  for _ in $(seq 50); do [ -n "$(timeout 5 squeue -h -t R,CG 2>/dev/null)" ] || break; sleep 0.2; done
  for pid_file in "$BASE"/run/slurmd.*.pid "$BASE/run/slurmctld.pid" "$BASE/run/munged.pid"; do stop "$pid_file"; done
  pkill -KILL -f "slurmstepd: \[" 2>/dev/null || true
  for link in /etc/slurm/*.conf; do [ "$(readlink "$link")" != "$BASE/etc/${link##*/}" ] || rm "$link"; done
  rm -rf "$BASE"
  say "down"
}

# A machine that is gone takes its step daemons and what they ran with it.
kill_node() {
  local job step child
  kill -KILL "$(cat "$BASE/run/slurmd.$1.pid")" || true
  rm -f "$BASE/run/slurmd.$1.pid"
  for job in $(squeue -h -w "$1" -o %A); do
    for step in $(pgrep -f "^slurmstepd: \[$job\."); do
      for child in $(pgrep -P "$step"); do kill -KILL -- "-$(ps -o pgid= -p "$child" | tr -d ' ')" 2>/dev/null || true; done
      kill -KILL "$step" 2>/dev/null || true
    done
  done
}

start_node() {
  alive "$BASE/run/slurmd.$1.pid" || slurmd -N "$1"
  sleep 1
  scontrol update nodename="$1" state=resume 2>/dev/null || true
}

case "${1:-}" in
  up) up ;;
  down) down ;;
  kill) kill_node "$2" ;;
  start) start_node "$2" ;;
  *) sed -n '4,7s/^# *//p' "$0" >&2; exit 2 ;;
esac
