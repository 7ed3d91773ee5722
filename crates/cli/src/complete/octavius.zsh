#compdef octavius
# Completion of octavius for zsh 5 or later. It asks the program, which asks the controller.
_octavius() {
    local -a done open
    local line value help
    for line in "${(@f)$(command octavius __complete zsh "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}"; do
        value=${line%%$'\t'*}
        [[ -n $value ]] || continue
        help=
        [[ $line == *$'\t'* ]] && help=${line#*$'\t'}
        line=${${value//\\/\\\\}//:/\\:}${help:+:${help//\\/\\\\}}
        # Behind these something follows, without a blank.
        if [[ $value == *[=/] ]]; then open+=("$line"); else done+=("$line"); fi
    done
    local found=1
    (( $#done )) && _describe -V 'octavius' done && found=0
    (( $#open )) && _describe -V 'octavius' open -S '' && found=0
    return found
}
# As a file of $fpath this is the body of the function; read with `source`, it registers it.
if [[ ${funcstack[1]} == _octavius ]]; then
    _octavius "$@"
elif (( $+functions[compdef] )); then
    compdef _octavius octavius
fi
