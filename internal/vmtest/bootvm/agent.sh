#!/bin/sh
# Runs scripts that come in over a virtio port, or in User Mode Linux over a console: a
# line with a number and the script in base64, answered by the number, the exit code
# and the output in base64.
port=/dev/virtio-ports/bootvm
for word in $(cat /proc/cmdline); do
	case $word in
	bootvm=*) port=/dev/${word#bootvm=} ;;
	esac
done
while [ ! -e "$port" ]; do sleep 0.2; done
exec 3<>"$port"
case $port in
/dev/tty*) stty raw -echo <&3 ;;
esac
echo READY >&3
while read -r number script <&3; do
	echo "$script" | base64 -d >/run/agent.sh
	sh /run/agent.sh >/run/agent.out 2>&1
	code=$?
	echo "$number $code $(base64 -w0 /run/agent.out)" >&3
done
