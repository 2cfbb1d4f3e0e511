# Completion of heddle's command line in bash. Commands, options and their values are read from `heddle --help`, so they are
# those of the heddle that is on the command line. Installed as share/bash-completion/completions/heddle.

# _heddle_words ARGUMENT...: what heddle prints for these arguments; nothing where it cannot run.
_heddle_words() { "${_heddle_program[@]}" "$@" 2>/dev/null; }

_heddle_commands() { _heddle_words --help | sed -n '/^Subcommands:/,/^$/ s/^  \([a-z][a-z-]*\) .*/\1/p'; }

# The folder with the configs that came with the program, installed or built.
_heddle_share() {
  local program folder
  program=$(readlink -f "$(type -P "${_heddle_program[0]}")" 2>/dev/null) || return
  for folder in "${program%/*}/../share/heddle" "${program%/*}/share/heddle"; do
    [[ -d $folder/configs ]] && echo "$folder" && return
  done
}

# _heddle_files PATTERN: files and folders; of files those that match, when PATTERN is given.
_heddle_files() {
  local path
  compopt -o filenames 2>/dev/null
  while IFS= read -r path; do
    [[ -d $path || -z ${1-} || $path == $1 ]] && COMPREPLY+=("$path")
  done < <(compgen -f -- "$cur")
}

# YAML files here, and below configs/ those that came with the program, which heddle finds from any folder.
_heddle_configs() {
  local share path
  _heddle_files '*.y?(a)ml'
  share=$(_heddle_share) || return
  [[ -n $share && ! -e configs ]] || return
  while IFS= read -r path; do
    path=${path#"$share"/}
    [[ $path == "$cur"* ]] && COMPREPLY+=("$path")
  done < <(compgen -G "$share/configs/*.yaml"; compgen -G "$share/configs/*/*.yaml")
}

_heddle_operators() { _heddle_words info | sed -n '/^operators/,$ { /^operators/d; s/,/ /g; p }'; }

# Names of suites: those files of configs/bench that have configs.
_heddle_suites() {
  local share file
  share=$(_heddle_share)
  for file in configs/bench/*.yaml "$share"/configs/bench/*.yaml; do
    [[ -f $file ]] && grep -qE '^(configs|training):' "$file" && basename "$file" .yaml
  done | sort -u
}

# Values of the option $1, which the help $2 shows as "--option KIND": a space before KIND, several before a description.
# KIND names one value or several ("auto|none|PATH"): those in lower case as they are, others as what they stand for.
# Returns 1 when the option takes no value.
_heddle_values() {
  local kind value words=
  kind=$(sed -nE "s/^ *$1 ([^ ]+).*/\\1/p" <<<"$2")
  [[ -z $kind || $kind == *: ]] && return 1  # nothing, or "Excludes:"
  for value in ${kind//[|,]/ }; do
    case $value in
      DEVICE)
        words+=' auto cpu cuda cuda:0'
        [[ $2 =~ cuda:INDEX[[:space:]]+or[[:space:]]+meta ]] && words+=' meta'
        ;;
      FILE* | DIR | PATH | RUN_OR* | *.safetensors*) _heddle_files ;;
      [[:lower:]]*) words+=" $value" ;;
    esac
  done
  COMPREPLY+=($(compgen -W "$words" -- "$cur"))
  return 0
}

_heddle() {
  local cur=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]} help
  local _heddle_program=("${COMP_WORDS[0]}")
  COMPREPLY=()
  # bash splits --option=VALUE at the =, which is then a word.
  if [[ $cur == '=' ]]; then
    cur=
  elif [[ $previous == '=' ]]; then
    previous=${COMP_WORDS[COMP_CWORD - 2]}
  fi
  if ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W "$(_heddle_commands) help --help --version" -- "$cur"))
    return
  fi
  if [[ $command == help ]]; then
    ((COMP_CWORD == 2)) && COMPREPLY=($(compgen -W "$(_heddle_commands)" -- "$cur"))
    return
  fi
  help=$(_heddle_words "$command" --help) || return
  if [[ $cur == -* ]]; then
    COMPREPLY=($(compgen -W "$(grep -oE '^ +(-h,)?--[a-z][a-z-]*' <<<"$help" | sed -E 's/^ *(-h,)?//')" -- "$cur"))
    return
  fi
  [[ $previous == --* ]] && _heddle_values "$previous" "$help" && return
  case $command in
    train | compare | memory) _heddle_configs ;;
    gradcheck)
      COMPREPLY=($(compgen -W "$(_heddle_operators)" -- "$cur"))
      _heddle_configs
      ;;
    bench)
      COMPREPLY=($(compgen -W "$(_heddle_operators) $(_heddle_suites)" -- "$cur"))
      _heddle_files '*.y?(a)ml'
      ;;
    run-layer) _heddle_files '*.y?(a)ml' ;;
    info) ;;
    *) _heddle_files ;;
  esac
  return 0
}

complete -F _heddle heddle
