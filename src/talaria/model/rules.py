"""
Compiles a rule once, and asks it of a series: does it match, and why.

A rule is one Python expression over the tags of a series. Its syntax tree becomes a tree of closures; what is not
listed here cannot be compiled. No text of a rule ever reaches `eval`, `getattr` or a format string.
"""

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from talaria.model.bounds import BINARY, UNARY, AbsentValue, Unfit, Value, bounded_integer, kind_of
from talaria.model.dicom import Tags
from talaria.model.errors import ConfigError, Position, RuleError
from talaria.model.evaluation import (
    BREAKS,
    Bound,
    Context,
    Link,
    Loop,
    Place,
    Run,
    Step,
    among,
    called_method,
    called_with_one,
    chained,
    compared_to,
    comparison,
    conditional,
    constant,
    gathered,
    invoke,
    joined,
    looped,
    matching,
    searched,
)
from talaria.model.explanation import Came, Explanation, Part, Seen, Trace, explanation_of
from talaria.model.functions import (
    ATTRIBUTE_NAMES,
    ATTRIBUTES,
    CONSTANTS,
    FUNCTIONS,
    METHOD_NAMES,
    METHODS,
    RuleFunction,
)
from talaria.model.ruletext import Reading, read, size
from talaria.model.wording import did_you_mean

#: Each is looked up in the dictionary, which takes long for what is not in it.
_TEXTS_LIMIT = 200

__all__ = ["Came", "Context", "Explanation", "Expression", "Part", "Resolve", "compile_rule"]

#: How a name of a tag becomes the name it is recorded under; raises LookupError or ConfigError with a suggestion.
Resolve = Callable[[str], str]


class Expression:
    """
    A compiled rule; never changes, and may be used by several threads.

    Attributes:
        text: The rule, as written.
        names: The tags it reads, by the names they are recorded under.
    """

    __slots__ = ("_reading", "_resolve", "_root", "_variables", "names", "text")

    def __init__(self, reading: Reading, resolve: Resolve) -> None:
        compiler = _Compiler(reading, resolve)
        self._root = compiler.step(reading.body)
        self._variables = compiler.variables
        self._reading = reading
        self._resolve = resolve
        self.text = reading.source.text
        self.names = frozenset(compiler.names)

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and self.text == other.text and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.text)

    def matches(self, context: Context) -> bool:
        """
        Whether the rule is true of *context*; false where it converts a value that the series does not have.

        Raises:
            RuleError: It broke: a present value that does not convert, a division by 0, a limit reached.
        """
        try:
            return bool(self._root(Run(context, self._variables)))
        except AbsentValue:
            return False
        except Unfit as error:
            raise self._reading.source.error(str(error), Position(line=1, column=1)) from None
        except (RecursionError, MemoryError):
            raise self._reading.source.error(
                "the rule is nested too deeply or needs too much memory", Position(line=1, column=1)
            ) from None

    def unrecorded(self, tags: Tags) -> frozenset[str]:
        """The tags it reads that were never looked for in that series: what it answers there is not known."""
        return frozenset(name for name in self.names if name not in tags)

    def explain(self, context: Context) -> Explanation:
        """Ask as `matches` does, and tell what every part of the rule came to; never raises RuleError."""
        trace: Trace = {}
        compiler = _Compiler(self._reading, self._resolve, trace)
        root = compiler.step(self._reading.body)
        matches: bool | None = None
        failure: RuleError | None = None
        try:
            matches = bool(root(Run(context, compiler.variables)))
        except AbsentValue:
            matches = False
        except RuleError as error:
            failure = error
        except (Unfit, RecursionError, MemoryError) as error:
            failure = self._reading.source.error(str(error) or "too large", Position(line=1, column=1))
        return explanation_of(self._reading, trace, compiler.tags, matches=matches, failure=failure)


def compile_rule(text: str, *, resolve: Resolve) -> Expression:
    """
    Compile a rule.

    Args:
        text: One expression; legacy forms included.
        resolve: See `Resolve`.

    Raises:
        RuleError: It is no rule; points at the place in *text*.

    >>> compile_rule("len(tags.Modality) = 2", resolve=str)
    Traceback (most recent call last):
    talaria.model.errors.RuleError: use '==' to compare, not '=' (line 1, column 20)
    """
    return Expression(read(text), resolve)


class _Compiler:
    """Turns the nodes of one rule into steps."""

    def __init__(self, reading: Reading, resolve: Resolve, trace: Trace | None = None) -> None:
        self._source = reading.source
        self._legacy = reading.legacy
        self._resolve = resolve
        self._trace = trace
        self._scopes: list[dict[str, int]] = []
        self._texts = {text for text in map(_text_of, ast.walk(reading.body)) if text}
        #: The tags that are read.
        self.names: set[str] = set()
        #: Which tag a node reads.
        self.tags: dict[ast.expr, str] = {}
        #: How many variables the comprehensions need.
        self.variables = 0
        self._reads: list[Step] = []

    def step(self, node: ast.expr) -> Step:
        """
        The step that evaluates *node*.

        Raises:
            RuleError: It, or something in it, is not available in rules.
        """
        step = self._step(node)
        return step if self._trace is None else _traced(step, node, self._trace)

    def _step(self, node: ast.expr) -> Step:
        match node:
            case ast.Constant():
                return self._constant(node)
            case ast.Name():
                return self._name(node)
            case ast.Attribute():
                return self._attribute(node)
            case ast.Subscript():
                return self._subscript(node)
            case ast.Call():
                return self._call(node)
            case ast.BoolOp():
                return joined([self.step(value) for value in node.values], is_and=isinstance(node.op, ast.And))
            case ast.UnaryOp():
                return self._unary(node)
            case ast.BinOp():
                return self._binary(node)
            case ast.Compare():
                return self._compare(node)
            case ast.IfExp():
                return conditional(self.step(node.test), self.step(node.body), self.step(node.orelse))
            case ast.List() | ast.Tuple() | ast.Set():
                return self._display(node)
            case ast.Dict():
                return self._dict(node)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                return self._comprehension(node)
            case ast.Slice():
                return self._slice(node)
            case _:
                raise self._refusal(node, _WORDS.get(type(node), "this") + " is not available in rules")

    # --- names and tags

    def _constant(self, node: ast.Constant) -> Step:
        value: Value = node.value
        if isinstance(value, bytes) or value is ...:
            word = "'...'" if value is ... else "a text of bytes"
            raise self._refusal(node, f"{word} is not available in rules")
        try:
            bounded_integer(value.bit_length() if isinstance(value, int) else 0)
        except Unfit as error:
            raise self._refusal(node, str(error)) from None
        return constant(value)

    def _name(self, node: ast.Name) -> Step:
        tag = self._legacy.get(self._source.start(node))
        if tag is not None and len(tag) + 2 == len(node.id):
            return self._tag(node, tag, self._source.start(node))
        variable = self._variable(node.id)
        if variable is not None:
            slot = variable
            return lambda run: run.variables[slot]
        if node.id in _SUBJECTS:
            return _SUBJECTS[node.id]
        if node.id in CONSTANTS:
            return constant(CONSTANTS[node.id])
        if function := FUNCTIONS.get(node.id):
            place = self._place(node)
            return lambda run: Bound(run, function, place)
        raise self._unknown(node)

    def _unknown(self, node: ast.Name) -> RuleError:
        try:
            hint = f"; did you mean tags.{self._resolve(node.id)}?"
        except (LookupError, ConfigError):
            hint = did_you_mean(node.id, [*_SUBJECTS, *FUNCTIONS, *CONSTANTS, "True", "False", "None"])
        return self._refusal(node, f"unknown name {self._source.segment(node)[:64]!r}{hint}")

    def _variable(self, name: str) -> int | None:
        """The slot of a variable of the comprehensions around, the innermost first."""
        return next((scope[name] for scope in reversed(self._scopes) if name in scope), None)

    def _is(self, node: ast.expr, name: str) -> bool:
        return isinstance(node, ast.Name) and node.id == name and self._variable(name) is None

    def _tag(self, node: ast.expr, name: str, at: Position) -> Step:
        """The value of a tag of this series."""
        canonical = self._canonical(name, at)
        self.tags[node] = canonical

        def read_tag(run: Run) -> Value:
            try:
                return run.values[canonical]
            except KeyError:
                return run.lacking(canonical)

        self._reads.append(read_tag)
        return read_tag

    def _canonical(self, name: str, at: Position) -> str:
        try:
            canonical = self._resolve(name)
        except (LookupError, ConfigError) as error:
            message = error.args[0] if error.args else f"unknown tag {name[:64]!r}"
            raise self._source.error(str(message), at) from None
        self.names.add(canonical)
        return canonical

    def _attribute(self, node: ast.Attribute) -> Step:
        at = self._source.ending(node)
        if node.attr.startswith("_"):
            raise self._source.error(f"attribute {node.attr[:64]!r} is not available in rules", at)
        if path := self._path(node):
            return self._tag(node, path, at)
        if node.attr in METHOD_NAMES:
            raise self._source.error(f"{node.attr!r} is a method; write {node.attr}()", at)
        if node.attr in ATTRIBUTE_NAMES:
            return self._property(node)
        if self._is(node.value, "now") or not isinstance(node.value, ast.Name | ast.Subscript):
            hint = did_you_mean(node.attr, [*ATTRIBUTE_NAMES, *METHOD_NAMES])
            raise self._source.error(f"attribute {node.attr[:64]!r} is not available in rules{hint}", at)
        return self._foreign(node, node.attr, at)

    def _path(self, node: ast.expr) -> str | None:
        """`X` of `tags.X`; `X[0].Y` of `tags.X[0].Y`."""
        match node:
            case ast.Attribute(value=value, attr=name) if self._is(value, "tags"):
                return name
            case ast.Attribute(value=ast.Subscript(value=ast.Attribute() as base, slice=ast.Constant(value=int(item)))):
                path = self._path(base)
                return f"{path}[{item}].{node.attr}" if path and node.attr not in METHOD_NAMES else None
            case _:
                return None

    def _foreign(self, node: ast.Attribute, name: str, at: Position) -> Step:
        """The value of a tag of some series: `s.SeriesDescription`."""
        base, place = self.step(node.value), self._place(node)
        canonical = self._canonical(name, at)

        def read_foreign(run: Run) -> Value:
            value = base(run)
            if isinstance(value, Tags):
                plain = value.plain
                return plain[canonical] if canonical in plain else value.get(canonical, "")
            raise place.broke(run, Unfit(f"{kind_of(value)} has no tags"))

        self._reads.append(read_foreign)
        return read_foreign

    def _property(self, node: ast.Attribute) -> Step:
        base, name, place = self.step(node.value), node.attr, self._place(node)

        def ask(run: Run) -> Value:
            value = base(run)
            known = ATTRIBUTES.get(type(value), {})
            if name not in known:
                raise place.broke(run, Unfit(f"{kind_of(value)} has no attribute '{name}'"))
            return known[name](value)

        return ask

    def _subscript(self, node: ast.Subscript) -> Step:
        name = _text_of(node.slice)
        if name is not None and self._is(node.value, "tags"):
            return self._tag(node, name, self._source.start(node.slice))
        is_lookup = not isinstance(node.slice, ast.Slice) and isinstance(node.value, ast.Name | ast.Subscript)
        if is_lookup and self._trace is None:
            self._remember_texts(node)
        first = len(self._reads)
        base, index = self.step(node.value), self.step(node.slice)
        place, find = self._place(node, since=first), self._found_by

        def take(run: Run) -> Value:
            value, key = base(run), index(run)
            if value.__class__ is Tags:
                return find(run, place, value, key)
            try:
                return value[key]
            except BREAKS as error:
                raise place.broke(run, error, value, verb="take an item of") from None

        if is_lookup:
            self._reads.append(take)
        return take

    def _remember_texts(self, node: ast.expr) -> None:
        """A tag is asked for by a name that is known only when the rule runs: it will be one of the texts."""
        if len(self._texts) > _TEXTS_LIMIT:
            message = f"a rule that looks up a tag by a computed name may hold {_TEXTS_LIMIT} different texts"
            raise self._refusal(node, message)
        while self._texts:
            try:
                self.names.add(self._resolve(self._texts.pop()))
            except (LookupError, ConfigError):
                continue

    def _found_by(self, run: Run, place: Place, tags: Tags, name: Value) -> Value:
        if not isinstance(name, str):
            raise place.broke(run, Unfit(f"{kind_of(name)} is not the name of a tag"))
        if name in tags:
            return tags[name]
        try:
            return tags.get(self._resolve(name), "")
        except (LookupError, ConfigError):
            raise place.broke(run, Unfit("there is no tag of that name")) from None

    def _slice(self, node: ast.Slice) -> Step:
        low, high, stride = (self.step(part) if part else None for part in (node.lower, node.upper, node.step))
        return lambda run: slice(
            low(run) if low else None, high(run) if high else None, stride(run) if stride else None
        )  # fmt: skip

    # --- operators

    def _unary(self, node: ast.UnaryOp) -> Step:
        operand = self.step(node.operand)
        if isinstance(node.op, ast.Not):
            return lambda run: not operand(run)
        act, place = UNARY[_SYMBOLS[type(node.op)]], self._place(node)

        def unary(run: Run) -> Value:
            value = operand(run)
            try:
                return act(value)
            except BREAKS as error:
                raise place.broke(run, error, value) from None

        return unary

    def _binary(self, node: ast.BinOp) -> Step:
        symbol = _SYMBOLS.get(type(node.op), "")
        if symbol not in BINARY:
            at = self._source.start(node.right)
            raise self._source.error("this operator is not available in rules", at)
        left, right, act = self.step(node.left), self.step(node.right), BINARY[symbol]
        place = self._place(node, at=self._source.symbol(node.left, node.right, symbol))

        def binary(run: Run) -> Value:
            first, second = left(run), right(run)
            try:
                return run.made(act(first, second))
            except BREAKS as error:
                raise place.broke(run, error, first, second, verb=f"apply '{symbol}' to") from None

        return binary

    def _compare(self, node: ast.Compare) -> Step:
        operands = [node.left, *node.comparators]
        links = [
            self._link(node, left, _SYMBOLS[type(operator)], right)
            for left, operator, right in zip(operands, node.ops, node.comparators, strict=False)
        ]
        if len(links) == 1:
            return self._single(node, links[0])
        return chained([self.step(operand) for operand in operands], links)

    def _link(self, node: ast.Compare, left: ast.expr, symbol: str, right: ast.expr) -> Link:
        place = self._place(node, at=self._source.symbol(left, right, symbol))
        link = comparison(symbol, place)
        name = _text_of(left)
        if name is None or symbol not in {"in", "not in"} or not self._is(right, "tags"):
            return link
        canonical = self._canonical(name, self._source.start(left))
        return lambda run, _, tags: link(run, canonical, tags)

    def _single(self, node: ast.Compare, link: Link) -> Step:
        """One comparison; quick where one side is a constant, since most are."""
        left, right, symbol = node.left, node.comparators[0], _SYMBOLS[type(node.ops[0])]
        first, second = self.step(left), self.step(right)
        if self._trace is None and isinstance(right, ast.Constant):
            place = self._place(node, at=self._source.symbol(left, right, symbol))
            return compared_to(first, right.value, symbol, place)
        text = _text_of(left)
        if self._trace is None and text is not None and symbol in {"in", "not in"}:
            return searched(text, second, symbol, link)
        if symbol in {"in", "not in"} and _folded(right) is not _UNKNOWN:
            return among(first, _folded(right), symbol, self._place(node))
        return lambda run: link(run, first(run), second(run))

    # --- displays

    def _display(self, node: ast.List | ast.Tuple | ast.Set) -> Step:
        steps, make, place = self._gathered(node.elts), _DISPLAYS[type(node)], self._place(node)
        known = _folded(node)
        if known is not _UNKNOWN:
            return constant(known)

        def display(run: Run) -> Value:
            try:
                return run.made(make(gathered(run, steps)))
            except BREAKS as error:
                raise place.broke(run, error, verb="hold") from None

        return display

    def _gathered(self, nodes: Sequence[ast.expr]) -> Sequence[tuple[Step, bool]]:
        """The steps of several expressions, and whether each is `*items`, which stands for its items."""
        return [
            (self.step(node.value), True) if isinstance(node, ast.Starred) else (self.step(node), False)
            for node in nodes
        ]

    def _dict(self, node: ast.Dict) -> Step:
        keys = [key for key in node.keys if key is not None]
        if len(keys) < len(node.keys):
            raise self._refusal(node, "'**' in a dict is not available in rules")
        steps = [(self.step(key), self.step(value)) for key, value in zip(keys, node.values, strict=True)]
        place = self._place(node)

        def make(run: Run) -> Value:
            try:
                return run.made({key(run): value(run) for key, value in steps})
            except BREAKS as error:
                raise place.broke(run, error, verb="hold") from None

        return make

    # --- comprehensions

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Step:
        first = self._iterated(node.generators[0].iter)
        self._scopes.append({})
        loops = [self._loop(node, generator, index) for index, generator in enumerate(node.generators)]
        element = self._element(node)
        self._scopes.pop()
        make, place = _COMPREHENSIONS[type(node)], self._place(node)

        def comprehend(run: Run) -> Value:
            inner = run.branch() if make is None else run
            items = looped(inner, first(run), loops, element)
            if make is None:
                return items
            try:
                return run.made(make(items))
            except BREAKS as error:
                raise place.broke(run, error, verb="hold") from None

        return comprehend

    def _element(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Step:
        if not isinstance(node, ast.DictComp):
            return self.step(node.elt)
        key, value = self.step(node.key), self.step(node.value)
        return lambda run: (key(run), value(run))

    def _iterated(self, node: ast.expr) -> Callable[[Run], Iterator[Value]]:
        step, place = self.step(node), self._place(node)

        def iterate(run: Run) -> Iterator[Value]:
            value = step(run)
            try:
                return iter(value)
            except TypeError:
                raise place.broke(run, Unfit(f"{kind_of(value)} has no items to go through")) from None

        return iterate

    def _loop(self, node: ast.expr, generator: ast.comprehension, index: int) -> Loop:
        if generator.is_async:
            raise self._refusal(node, "'async' is not available in rules")
        items = self._iterated(generator.iter) if index else _no_items
        target = generator.target
        slot = self._slot(target.id if isinstance(target, ast.Name) else "")
        unpack = None if isinstance(target, ast.Name) else self._target(target)
        tests = [self.step(test) for test in generator.ifs]
        test = joined(tests, is_and=True) if tests else None
        return Loop(
            items=items, slot=slot, unpack=unpack, test=test, cost=size(node), place=self._place(node)
        )  # fmt: skip

    def _slot(self, name: str) -> int:
        """The slot of a new variable of the innermost comprehension."""
        slot = self._scopes[-1].setdefault(name, self.variables)
        self.variables = max(self.variables, slot + 1)
        return slot

    def _target(self, node: ast.expr) -> Callable[[Run, Value], None]:
        if isinstance(node, ast.Name):
            slot = self._slot(node.id)
            return lambda run, value: run.variables.__setitem__(slot, value)
        if not isinstance(node, ast.Tuple | ast.List):
            raise self._refusal(node, "a loop gives its values to names: 'for name in ...', 'for a, b in ...'")
        parts = [self._target(part) for part in node.elts]
        place = self._place(node)

        def unpack(run: Run, value: Value) -> None:
            items = list(run.each(value)) if isinstance(value, Iterable) else []
            if len(items) != len(parts):
                raise place.broke(run, Unfit(f"{len(parts)} values are needed here"))
            for part, item in zip(parts, items, strict=True):
                part(run, item)

        return unpack

    # --- calls

    def _call(self, node: ast.Call) -> Step:
        match node.func:
            case ast.Name() as name if self._variable(name.id) is None and name.id in FUNCTIONS:
                return self._function(node, FUNCTIONS[name.id])
            case ast.Name() as name if name.id in _SUBJECTS or self._variable(name.id) is not None:
                raise self._refusal(name, f"{name.id!r} is a value, not a function")
            case ast.Name() as name:
                hint = did_you_mean(name.id, FUNCTIONS)
                raise self._refusal(name, f"function {name.id[:64]!r} is not available in rules{hint}")
            case ast.Attribute() as method:
                return self._method(node, method)
            case other:
                raise self._refusal(other, "only a function or a method, by its name, can be called")

    def _function(self, node: ast.Call, function: RuleFunction) -> Step:
        self._check_arguments(node, function)
        first = len(self._reads)
        steps = self._gathered(node.args)
        named = [(keyword.arg or "", self.step(keyword.value)) for keyword in node.keywords]
        place = self._place(node, since=first)
        if not named and len(steps) == len(node.args) and all(not starred for _, starred in steps):
            if len(steps) == 1:
                return called_with_one(function, steps[0][0], place)
            pattern = _text_of(node.args[1]) if function.name == "matches" else None
            if pattern is not None:
                return self._matches(steps[0][0], pattern, node.args[1], place)
        return lambda run: invoke(
            run, function, place, gathered(run, steps), {name: step(run) for name, step in named}
        )  # fmt: skip

    def _matches(self, text: Step, pattern: str, node: ast.expr, place: Place) -> Step:
        try:
            return matching(text, pattern, FUNCTIONS["matches"], place)
        except Unfit as error:
            raise self._refusal(node, str(error)) from None

    def _check_arguments(self, node: ast.Call, function: RuleFunction) -> None:
        names = [keyword.arg for keyword in node.keywords]
        if None in names:
            raise self._refusal(node, "'**' in a call is not available in rules")
        try:
            if any(isinstance(argument, ast.Starred) for argument in node.args):
                function.signature.bind_partial(**{str(name): None for name in names})
            else:
                function.signature.bind(*node.args, **{str(name): None for name in names})
            repeated = len(set(names)) < len(names)
        except TypeError:
            repeated = True
        if repeated:
            raise self._refusal(node, f"{function.name}() is written {function.text}; it has other arguments here")

    def _method(self, node: ast.Call, method: ast.Attribute) -> Step:
        at, name = self._source.ending(method), method.attr
        if name.startswith("_") or name not in METHOD_NAMES:
            if self._is(method.value, "tags") or name in ATTRIBUTE_NAMES:
                raise self._source.error(f"{name[:64]!r} is a value, not a method; leave out the brackets", at)
            hint = did_you_mean(name, METHOD_NAMES)
            raise self._source.error(f"method {name[:64]!r} is not available in rules{hint}", at)
        if isinstance(method.value, ast.Name) and any(self._is(method.value, subject) for subject in _SUBJECTS):
            raise self._source.error(f"{method.value.id} has no method {name!r}", at)
        if node.keywords:
            raise self._refusal(node, f"{name}() takes its arguments without names here")
        self._check_count(node, name, at)
        first = len(self._reads)
        base, steps = self.step(method.value), self._gathered(node.args)
        return called_method(name, base, steps, self._place(node, since=first, at=at))

    def _check_count(self, node: ast.Call, name: str, at: Position) -> None:
        if any(isinstance(argument, ast.Starred) for argument in node.args):
            return
        known = [methods[name] for methods in METHODS.values() if name in methods]
        if not any(method.fewest <= len(node.args) <= method.most for method in known):
            fewest, most = min(method.fewest for method in known), max(method.most for method in known)
            wanted = str(most) if fewest == most else f"{fewest} to {most}"
            raise self._source.error(f"{name}() takes {wanted} arguments, {len(node.args)} are given", at)

    # --- errors

    def _place(self, node: ast.expr, *, since: int | None = None, at: Position | None = None) -> Place:
        """*since*: how many tags were read before; those read by *node* tell whether a value was absent."""
        return Place(self._source, node, at=at, tags=() if since is None else self._reads[since:])

    def _refusal(self, node: ast.expr, message: str) -> RuleError:
        return self._source.error(message, self._source.start(node))


#: What stands for the series and its surroundings.
_SUBJECTS: Mapping[str, Step] = {
    "tags": lambda run: run.context.tags,
    "now": lambda run: run.context.now,
    "count": lambda run: run.context.count,
    "series": lambda run: run.context.series,
}

_SYMBOLS: Mapping[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.BitOr: "|", ast.BitAnd: "&", ast.BitXor: "^", ast.USub: "-", ast.UAdd: "+", ast.Invert: "~",
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
    ast.In: "in", ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not",
}  # fmt: skip

#: What is refused, by its name.
_WORDS: Mapping[type[ast.AST], str] = {
    ast.Lambda: "a lambda",
    ast.JoinedStr: "an f-string",
    ast.NamedExpr: "an assignment ':='",
    ast.Await: "'await'",
    ast.Yield: "'yield'",
    ast.YieldFrom: "'yield'",
    ast.Starred: "'*' before a value here",
}

_DISPLAYS: Mapping[type[ast.AST], Callable[[Iterable[Value]], Value]] = {ast.List: list, ast.Tuple: tuple, ast.Set: set}

#: None: the items are handed on as they come.
_COMPREHENSIONS: Mapping[type[ast.AST], Callable[[Iterable[Value]], Value] | None] = {
    ast.ListComp: list, ast.SetComp: set, ast.DictComp: dict, ast.GeneratorExp: None,
}  # fmt: skip

#: No value: a display that is not made of constants alone.
_UNKNOWN = object()


def _folded(node: ast.expr) -> Value:
    """The list, tuple or set that a display of constants makes, made once: no rule can change it."""
    if not isinstance(node, ast.List | ast.Tuple | ast.Set):
        return _UNKNOWN
    constants = [item.value for item in node.elts if isinstance(item, ast.Constant)]
    return _DISPLAYS[type(node)](constants) if len(constants) == len(node.elts) else _UNKNOWN


def _text_of(node: ast.AST) -> str | None:
    """The text that stands there as such."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _no_items(run: Run) -> Iterator[Value]:
    """The outermost loop of a comprehension is handed its items."""
    raise NotImplementedError


def _traced(step: Step, node: ast.expr, trace: Trace) -> Step:
    """The same step, which also writes down what it came to."""

    def trace_step(run: Run) -> Value:
        try:
            value = step(run)
        except AbsentValue:
            trace[node] = Seen(came=Came.ABSENT)
            raise
        except RuleError:
            trace[node] = Seen(came=Came.ERROR)
            raise
        trace[node] = Seen(came=Came.VALUE, value=value)
        return value

    return trace_step
