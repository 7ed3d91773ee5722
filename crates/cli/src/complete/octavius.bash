# Completion of octavius for bash 4 or later. It asks the program, which asks the controller.
_octavius() {
    local line=${COMP_LINE:0:COMP_POINT} words=() word i
    # Readline takes a line apart at `=`, `:` and `@` as well. Here, a word is what stands between blanks.
    for ((i = 0; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $i -gt 0 && $line != [[:blank:]]* ]]; then
            words[${#words[@]} - 1]+=$word
        else
            words+=("$word")
        fi
        line=${line#"${line%%[![:blank:]]*}"}
        line=${line#"$word"}
    done
    if [[ $line == [[:blank:]]* ]]; then
        words+=("${line#"${line%%[![:blank:]]*}"}")
    else
        words[${#words[@]} - 1]+=$line
    fi
    local current=${words[${#words[@]} - 1]}
    # Of the word, readline replaces its own last part, which comes as the second argument.
    local head=${current%"$2"}
    COMPREPLY=()
    while IFS= read -r word; do
        word=${word#"$head"}
        # What a job's author wrote is a word here, whatever it holds, and never a command.
        case $current in
        \"*)
            word=${word//\\/\\\\}
            word=${word//\"/\\\"}
            word=${word//\$/\\\$}
            word=${word//\`/\\\`}
            ;;
        \'*) word=${word//\'/\'\\\'\'} ;;
        '~/'*)
            printf -v word '~/%q' "${word:2}"
            word=${word%"''"}
            ;;
        *) printf -v word %q "$word" ;;
        esac
        COMPREPLY+=("$word")
    done < <(command octavius __complete bash "${words[@]:1}" 2>/dev/null)
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=/] ]] && compopt -o nospace
    return 0
}
complete -o nosort -F _octavius octavius 2>/dev/null || complete -F _octavius octavius
