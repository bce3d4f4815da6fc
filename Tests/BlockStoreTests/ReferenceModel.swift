import BlockStore

/// What a volume holds, by sector of 512 bytes. A sector's content follows from its tag; no tag means zeros.
struct VolumeModel: Equatable {
    var sizeBytes: UInt64
    var sectors: [UInt64: UInt64] = [:]
    /// For each mapped block of 4096 bytes the write that made it. Snapshots and clones share a block where the number
    /// is the same.
    var blocks: [UInt64: UInt64] = [:]

    /// Blocks that a reader got medium errors for.
    var unreadable: Set<UInt64> = []

    /// By content: which write made a block cannot be read back, and what cannot be read equals anything.
    static func == (left: VolumeModel, right: VolumeModel) -> Bool {
        guard left.sizeBytes == right.sizeBytes else { return false }
        let unreadable = left.unreadable.union(right.unreadable)
        guard !unreadable.isEmpty else { return left.sectors == right.sectors }
        return left.sectors.filter { !unreadable.contains($0.key / 8) }
            == right.sectors.filter { !unreadable.contains($0.key / 8) }
    }

    mutating func write(_ range: Range<UInt64>, tag: UInt64, serial: UInt64) {
        for sector in range { sectors[sector] = tag == 0 ? nil : tag &+ sector }
        map(range, serial)
    }

    /// Every sector of the range gets the same content.
    mutating func fill(_ range: Range<UInt64>, tag: UInt64, serial: UInt64) {
        for sector in range { sectors[sector] = tag == 0 ? nil : tag }
        map(range, serial)
    }

    private mutating func map(_ range: Range<UInt64>, _ serial: UInt64) {
        for block in (range.lowerBound / 8)...((range.upperBound - 1) / 8) {
            let isMapped = (block * 8..<block * 8 + 8).contains { sectors[$0] != nil }
            blocks[block] = isMapped ? serial : nil
        }
    }

    /// Whole blocks only.
    mutating func unmap(_ range: Range<UInt64>) {
        if range.count < 10000 {
            for sector in range { sectors[sector] = nil }
        } else {
            sectors = sectors.filter { !range.contains($0.key) }
        }
        blocks = blocks.filter { !range.contains($0.key * 8) }
    }

    mutating func resize(_ sizeBytes: UInt64) {
        if sizeBytes < self.sizeBytes { unmap((sizeBytes / 512)..<(self.sizeBytes / 512)) }
        self.sizeBytes = sizeBytes
    }
}

struct SnapshotModel: Equatable {
    var name: String
    var members: [VolumeID: VolumeModel]
    var attributes: [UInt8]
    var kind: SnapshotKind
    /// The pool could not read them.
    var hasLostAttributes = false

    static func == (left: SnapshotModel, right: SnapshotModel) -> Bool {
        (left.name, left.kind) == (right.name, right.kind) && left.members == right.members
            && (left.attributes == right.attributes || left.hasLostAttributes || right.hasLostAttributes)
    }
}

/// A pool as it should be.
struct PoolModel: Equatable {
    /// A volume's part in a snapshot. `slot` is the volume at the time of the cut and never changes.
    struct Member: Hashable {
        var snapshot: SnapshotID
        var slot: VolumeID
    }

    struct MemberState {
        var parent: Member?
        var owner: VolumeID
        /// The volume that all with a common history come from.
        var tree: VolumeID
    }

    var volumes: [VolumeID: VolumeModel] = [:]
    var snapshots: [SnapshotID: SnapshotModel] = [:]
    /// For each clone the snapshot that it stands on.
    var origins: [VolumeID: SnapshotID] = [:]
    var members: [Member: MemberState] = [:]
    var heads: [VolumeID: (parent: Member?, tree: VolumeID)] = [:]
    var poolBytes: UInt64 = 0

    /// By what can be read from a pool.
    static func == (left: PoolModel, right: PoolModel) -> Bool {
        left.volumes == right.volumes && left.snapshots == right.snapshots && left.origins == right.origins
            && left.poolBytes == right.poolBytes
    }

    func hasSameBlocks(as other: PoolModel) -> Bool {
        volumes.allSatisfy { other.volumes[$0.key]?.blocks == $0.value.blocks }
            && snapshots.allSatisfy { id, snapshot in
                snapshot.members.allSatisfy { other.snapshots[id]?.members[$0.key]?.blocks == $0.value.blocks }
            }
    }

    mutating func create(_ id: VolumeID, sizeBytes: UInt64) {
        volumes[id] = VolumeModel(sizeBytes: sizeBytes)
        heads[id] = (nil, id)
    }

    mutating func delete(_ volume: VolumeID) {
        volumes[volume] = nil
        origins[volume] = nil
        heads[volume] = nil
    }

    mutating func snapshot(
        _ names: [VolumeID], as id: SnapshotID, name: String, attributes: [UInt8], kind: SnapshotKind
    ) {
        snapshots[id] = SnapshotModel(
            name: name, members: volumes.filter { names.contains($0.key) }, attributes: attributes, kind: kind)
        for volume in names {
            let member = Member(snapshot: id, slot: volume)
            let head = heads[volume]!
            members[member] = MemberState(parent: head.parent, owner: volume, tree: head.tree)
            heads[volume] = (member, head.tree)
        }
    }

    mutating func delete(_ id: SnapshotID) {
        snapshots[id] = nil
        for (member, state) in members where member.snapshot == id {
            members[member] = nil
            for (other, value) in members where value.parent == member { members[other] = with(value, state.parent) }
            for (volume, head) in heads where head.parent == member { heads[volume] = (state.parent, head.tree) }
        }
    }

    private func with(_ state: MemberState, _ parent: Member?) -> MemberState {
        MemberState(parent: parent, owner: state.owner, tree: state.tree)
    }

    /// The member of a snapshot that belongs to a volume now.
    func member(_ snapshot: SnapshotID, _ volume: VolumeID) -> Member {
        members.first { $0.key.snapshot == snapshot && $0.value.owner == volume }!.key
    }

    mutating func clone(_ snapshot: SnapshotID, _ volume: VolumeID, as id: VolumeID) {
        volumes[id] = snapshots[snapshot]!.members[volume]!
        origins[id] = snapshot
        let source = member(snapshot, volume)
        heads[id] = (source, members[source]!.tree)
    }

    mutating func revert(_ names: [VolumeID], to snapshot: SnapshotID) {
        for volume in names {
            volumes[volume] = snapshots[snapshot]!.members[volume]!
            heads[volume]!.parent = member(snapshot, volume)
        }
    }

    /// Whether a volume's history leads to a snapshot of another.
    func standsOnAnother(_ clone: VolumeID) -> Bool {
        var current = heads[clone]?.parent
        while let member = current, members[member]!.owner == clone { current = members[member]!.parent }
        return current != nil
    }

    mutating func promote(_ clone: VolumeID) {
        var current = heads[clone]?.parent
        while let member = current, members[member]!.owner == clone { current = members[member]!.parent }
        guard let origin = current else { return }
        let former = members[origin]!.owner
        while let member = current, members[member]!.owner == former {
            members[member]!.owner = clone
            let content = snapshots[member.snapshot]!.members.removeValue(forKey: former)
            snapshots[member.snapshot]!.members[clone] = content
            current = members[member]!.parent
        }
        origins[clone] = origins[former]
        current = heads[former]?.parent
        while let member = current, members[member]!.owner == former { current = members[member]!.parent }
        origins[former] = current?.snapshot
    }

    /// Blocks that only the members of these snapshots have.
    func exclusiveBlocks(_ ids: Set<SnapshotID>) -> Int {
        struct Block: Hashable {
            var place: UInt64
            var serial: UInt64
        }
        func blocks(_ volume: VolumeModel) -> [Block] { volume.blocks.map { Block(place: $0.key, serial: $0.value) } }
        var own: Set<Block> = []
        for id in ids { for member in snapshots[id]!.members.values { own.formUnion(blocks(member)) } }
        for volume in volumes.values { own.subtract(blocks(volume)) }
        for (id, snapshot) in snapshots where !ids.contains(id) {
            for member in snapshot.members.values { own.subtract(blocks(member)) }
        }
        return own.count
    }
}

/// The content of a sector.
enum Sector {
    static let bytes = 512
    /// In a tag that has the low 40 bits set: the sector belongs to no place.
    static let anywhere: UInt64 = 1 << 40 - 1

    static func fill(_ buffer: UnsafeMutableRawBufferPointer, tag: UInt64) {
        for word in 0..<(buffer.count / 8) {
            let value = tag == 0 ? 0 : tag &+ UInt64(word) &* 0x9e37_79b9_7f4a_7c15
            buffer.storeBytes(of: value, toByteOffset: word * 8, as: UInt64.self)
        }
    }

    /// The tag of a sector, or nil when its words do not belong together.
    static func tag(_ bytes: UnsafeRawBufferPointer) -> UInt64? {
        let tag = bytes.load(as: UInt64.self)
        for word in [1, 17, 40, 63] {
            let expected = tag == 0 ? 0 : tag &+ UInt64(word) &* 0x9e37_79b9_7f4a_7c15
            if bytes.load(fromByteOffset: word * 8, as: UInt64.self) != expected { return nil }
        }
        return tag
    }

    /// The bytes of a run of sectors that were written with one tag.
    static func run(_ sectors: Range<UInt64>, tag: UInt64) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: sectors.count * Self.bytes)
        bytes.withUnsafeMutableBytes { raw in
            for (index, sector) in sectors.enumerated() {
                let part = UnsafeMutableRawBufferPointer(rebasing: raw[(index * 512)..<((index + 1) * 512)])
                fill(part, tag: tag == 0 ? 0 : tag &+ sector)
            }
        }
        return bytes
    }
}
