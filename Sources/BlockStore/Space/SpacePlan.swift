/// Which walks answer a question about space.
///
/// The datasets that hold one block are connected in the tree of datasets, with the one it was born in on top. So what
/// a connected set of datasets holds alone can be counted along its edges: a block is counted at the *last* of a line
/// of datasets that has it, if it was born after the epoch of the parent of the whole line. Where several lines outside
/// of the set begin in it, a block is counted at the *first* that has it, against all of them.
struct SpacePlan {
    /// One walk, and how often its result counts.
    struct Term: Hashable {
        var dataset: UInt64
        var floorEpoch: UInt64
        var successors: [UInt64]
        /// Logical blocks: datasets that are being reclaimed are gone before their cursor and there from it on.
        var range: Range<UInt64>
        var exclusiveFactor: Int64 = 0
        var freedFactor: Int64 = 0
        /// What must still be so for the walk to mean what it was planned for.
        var parent: UInt64
        var children: [UInt64]
        var cursor: UInt64

        /// An order of all terms, so that answers are found in the same way each time.
        static func comesBefore(_ left: Term, _ right: Term) -> Bool {
            let (first, second) = (left.place, right.place)
            return first == second ? left.successors.lexicographicallyPrecedes(right.successors) : first < second
        }

        private var place: (UInt64, UInt64, UInt64, UInt64) {
            (dataset, range.lowerBound, range.upperBound, floorEpoch)
        }

        /// Nil when the tree has changed. Called with the lock held.
        func roots(in core: PoolCore) -> (NodePointer, [NodePointer])? {
            guard let own = core.datasets[dataset], own.parent?.number ?? 0 == parent, own.cursor == cursor,
                own.children.map(\.number).sorted() == children
            else { return nil }
            var roots: [NodePointer] = []
            for number in successors {
                guard let successor = core.datasets[number] else { return nil }
                roots.append(successor.root.pointer)
            }
            return (own.root.pointer, roots)
        }
    }

    private(set) var terms: [Term] = []

    /// The datasets whose maps an answer about `chosen` depends on: they, deleted ones beside them, and all children.
    static func family(of chosen: [Dataset]) -> [Dataset] {
        let set = SpaceSet(growing: chosen)
        var all = set.members
        for dataset in set.members.values {
            for child in dataset.children { all[child.number] = child }
        }
        return Array(all.values)
    }

    /// Called with the lock held.
    init(chosen: [Dataset]) {
        let all = SpaceSet(growing: chosen)
        let before = SpaceSet(all.members.values.filter { $0.role == .doomed })
        var found: [Term: (exclusive: Int64, freed: Int64)] = [:]
        for term in all.terms() { found[term, default: (0, 0)].exclusive += 1 }
        for term in before.terms() { found[term, default: (0, 0)].exclusive -= 1 }
        for term in all.reclaimable().terms() { found[term, default: (0, 0)].freed += 1 }
        for term in before.reclaimable().terms() { found[term, default: (0, 0)].freed -= 1 }
        for (term, factors) in found where factors != (0, 0) {
            var term = term
            term.exclusiveFactor = factors.exclusive
            term.freedFactor = factors.freed
            terms.append(term)
        }
        terms.sort(by: Term.comesBefore)
    }
}

/// Datasets that are looked at as if they were deleted. Used with the pool's lock held.
struct SpaceSet {
    private(set) var members: [UInt64: Dataset] = [:]

    init(_ datasets: some Sequence<Dataset>) {
        for dataset in datasets { members[dataset.number] = dataset }
    }

    /// With the deleted datasets that are connected to `chosen` through each other: what happens to one decides over
    /// the next.
    init(growing chosen: [Dataset]) {
        self.init(chosen)
        var queue = chosen
        while let next = queue.popLast() {
            for neighbour in next.children + (next.parent.map { [$0] } ?? [])
            where neighbour.role == .doomed && members[neighbour.number] == nil {
                members[neighbour.number] = neighbour
                queue.append(neighbour)
            }
        }
    }

    /// The members in an order in which children come before their parents.
    private var bottomUp: [Dataset] { members.values.sorted { ($0.epoch, $0.number) > ($1.epoch, $1.number) } }

    /// Whether something outside of the set stands on each member.
    private func bearing() -> Set<UInt64> {
        var result: Set<UInt64> = []
        for dataset in bottomUp
        where dataset.children.contains(where: { members[$0.number] == nil || result.contains($0.number) }) {
            result.insert(dataset.number)
        }
        return result
    }

    private func standing(on dataset: Dataset, _ bearing: Set<UInt64>) -> [Dataset] {
        dataset.children.filter { members[$0.number] == nil || bearing.contains($0.number) }
    }

    /// Those that reclaim can free: on which at most one line stands when the others are gone.
    func reclaimable() -> SpaceSet {
        let bearing = bearing()
        return SpaceSet(members.values.filter { standing(on: $0, bearing).count <= 1 })
    }

    // MARK: Terms

    func terms() -> [SpacePlan.Term] {
        let cursors = Set(members.values.filter { $0.role == .doomed }.map(\.cursor)).subtracting([0]).sorted()
        let bounds = [0] + cursors + [UInt64.max]
        var result: [SpacePlan.Term] = []
        for (start, end) in zip(bounds, bounds.dropFirst()) {
            result += terms(in: start..<end)
        }
        return result
    }

    /// What is reclaimed already in this part is passed over.
    private func isGone(_ dataset: Dataset, _ range: Range<UInt64>) -> Bool {
        dataset.role == .doomed && dataset.cursor > range.lowerBound
    }

    private func terms(in range: Range<UInt64>) -> [SpacePlan.Term] {
        let bearing = bearing()
        var result: [SpacePlan.Term] = []
        for top in members.values where top.parent.map({ members[$0.number] == nil }) ?? true {
            if isOneLine(top, bearing) {
                line(from: top, floor: top.floorEpoch, range, bearing, &result)
            } else {
                _ = fork(top, range, &result)
            }
        }
        return result
    }

    private func isOneLine(_ dataset: Dataset, _ bearing: Set<UInt64>) -> Bool {
        var queue = [dataset]
        while let next = queue.popLast() {
            if standing(on: next, bearing).count > 1 { return false }
            queue += next.children.filter { members[$0.number] != nil }
        }
        return true
    }

    /// From a dataset down to where the set ends; what branches off on the way ends within the set.
    private func line(
        from top: Dataset, floor: UInt64, _ range: Range<UInt64>, _ bearing: Set<UInt64>,
        _ result: inout [SpacePlan.Term]
    ) {
        var current = top
        while true {
            let next = standing(on: current, bearing).first ?? current.children.first
            for side in current.children where side !== next {
                line(from: side, floor: self.floor(of: side, range), range, bearing, &result)
            }
            var successor = next
            while let candidate = successor, members[candidate.number] != nil, isGone(candidate, range) {
                successor = standing(on: candidate, bearing).first ?? candidate.children.first
            }
            if !isGone(current, range) {
                result.append(term(current, floor: floor, successors: successor.map { [$0] } ?? [], range))
            }
            guard let next, members[next.number] != nil else { return }
            current = next
        }
    }

    /// Returns the datasets outside of the set that stand on this one, over any number of members.
    private func fork(_ dataset: Dataset, _ range: Range<UInt64>, _ result: inout [SpacePlan.Term]) -> [Dataset] {
        var outside: [Dataset] = []
        for child in dataset.children {
            if members[child.number] != nil {
                outside += fork(child, range, &result)
            } else {
                outside.append(child)
            }
        }
        if !isGone(dataset, range) {
            result.append(term(dataset, floor: floor(of: dataset, range), successors: outside, range))
        }
        return outside
    }

    /// A parent that is reclaimed already in this part has left its blocks to its successor.
    private func floor(of dataset: Dataset, _ range: Range<UInt64>) -> UInt64 {
        var parent = dataset.parent
        while let candidate = parent, members[candidate.number] != nil, isGone(candidate, range) {
            parent = candidate.parent
        }
        return parent?.epoch ?? 0
    }

    private func term(
        _ dataset: Dataset, floor: UInt64, successors: [Dataset], _ range: Range<UInt64>
    ) -> SpacePlan.Term {
        SpacePlan.Term(
            dataset: dataset.number, floorEpoch: floor, successors: successors.map(\.number).sorted(), range: range,
            parent: dataset.parent?.number ?? 0, children: dataset.children.map(\.number).sorted(),
            cursor: dataset.cursor)
    }
}
