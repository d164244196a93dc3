# SPDX-License-Identifier: Apache-2.0
# Bash completion for ferry. Verbs and options are asked from `ferry --help`, so that this file cannot fall behind; names of
# VMs, hosts and migrations from ferryd, which is given a second.

# The options before the cursor that say whom to ask.
_ferry_global()
{
	local i
	for ((i = 1; i < COMP_CWORD; i++)); do
		case ${COMP_WORDS[i]} in
		-H | --host) printf '%s\n' -H "${COMP_WORDS[i + 1]}" ;;
		esac
	done
}

# First column of a list, without its heading.
_ferry_names()
{
	local -a global
	mapfile -t global < <(_ferry_global)
	timeout 1 "${COMP_WORDS[0]}" "${global[@]}" "$@" 2>/dev/null | awk 'NR > 1 { print $1 }'
}

# Of the migrations that wait in doubt, or, with an id, of that one: the id, or source and destination.
_ferry_doubts()
{
	local -a global
	mapfile -t global < <(_ferry_global)
	timeout 1 "${COMP_WORDS[0]}" "${global[@]}" migration list 2>/dev/null |
		awk -v id="$1" 'NR > 1 && !id && $5 == "in-doubt" { print $1 }
			NR > 1 && id && (index($1, id) == 1 || index(id, $1) == 1) { print $3; print $4 }'
}

# The verbs, "vm start" and so on, one a line.
_ferry_verbs()
{
	"${COMP_WORDS[0]}" --help 2>/dev/null | sed -nE 's/^  ([a-z]+( [a-z]+)?) .*/\1/p'
}

_ferry()
{
	local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} verbs first="" second="" third="" i
	local candidates=""
	COMPREPLY=()
	verbs=$(_ferry_verbs)
	# The verb's words: what is neither an option nor an option's value.
	for ((i = 1; i < COMP_CWORD; i++)); do
		case ${COMP_WORDS[i]} in
		-H | --host | --output | --owner | --fenced | --plot) ((i++)) ;;
		-*) ;;
		*)
			if [[ -z $first ]]; then
				first=${COMP_WORDS[i]}
			elif [[ -z $second ]]; then
				second=${COMP_WORDS[i]}
			elif [[ -z $third ]]; then
				third=${COMP_WORDS[i]}
			fi
			;;
		esac
	done
	local verb=$first
	grep -q "^$first " <<<"$verbs" && verb="$first $second"
	case $previous in
	--output) candidates="json text" ;;
	--transport) candidates="auto native relay" ;;
	--converge) candidates="none throttle throttle,postcopy throttle,pause= postcopy pause=" ;;
	--policy) candidates="ferry qemu auto-converge fixed fixed-throttle proxmox ovirt ovirt-suspend kubevirt" ;;
	--owner | --fenced) candidates=$(_ferry_doubts "${third:-.}") ;;
	--to | -H | --host) candidates=$(_ferry_names host list) ;;
	--out | --ca | --folder)
		mapfile -t COMPREPLY < <(compgen -d -- "$current")
		return
		;;
	--plot)
		mapfile -t COMPREPLY < <(compgen -f -- "$current")
		return
		;;
	--max-downtime | --deadline | --bandwidth | --channels | --map | --address) return ;;
	*)
		if [[ -z $first ]]; then
			candidates="$(cut -d ' ' -f 1 <<<"$verbs" | sort -u) -H --help --version"
		elif [[ $verb == "$first " ]]; then
			candidates=$(sed -n "s/^$first //p" <<<"$verbs")
		elif [[ $current == -* ]]; then
			# shellcheck disable=SC2086 # the verb's words
			candidates=$("${COMP_WORDS[0]}" $verb --help 2>/dev/null | sed -nE 's/^  (--[a-z-]+).*/\1/p')
		else
			case $verb in
			"vm define" | "stream analyze" | "image index" | "image forget")
				mapfile -t COMPREPLY < <(compgen -f -- "$current")
				return
				;;
			migrate | plan | vm\ *) candidates=$(_ferry_names vm list) ;;
			"host show" | "host remove") candidates=$(_ferry_names host list) ;;
			"migration resolve") candidates=$(_ferry_doubts "") ;;
			"migration list" | "migration stats") ;;
			migration\ *) candidates=$(_ferry_names migration list) ;;
			esac
		fi
		;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$candidates" -- "$current")
}

complete -F _ferry ferry
