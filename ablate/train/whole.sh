# sh whole.sh COMPILER ARGUMENTS…: a compiler whose output is there whole or not at all. torch's names the file that
# others wait for, and takes it for good wherever it stands: a killed one would leave them half a library.
compiler=$1
shift
target= before=
for word; do
  [ "$before" = -o ] && target=$word
  before=$word
done
[ "$target" ] || exec $compiler "$@"
count=$#
while [ $count -gt 0 ]; do
  word=$1
  shift
  [ "$word" = "$target" ] && word=$target.$$
  set -- "$@" "$word"
  count=$((count - 1))
done
if $compiler "$@"; then
  mv -f "$target.$$" "$target"
else
  rm -f "$target.$$"
  exit 1
fi
