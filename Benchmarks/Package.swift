// swift-tools-version: 6.2
import PackageDescription

// A package of its own, so that measuring never burdens the product's build. `Product` is a link to ../Sources: the
// store is compiled here as the product compiles it, and nothing else of it.

let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("InternalImportsByDefault"),
]

let package = Package(
    name: "benchmarks",
    targets: [
        .target(name: "CLinux", path: "Product/CLinux"),
        .target(name: "BlockIO", dependencies: ["CLinux"], path: "Product/BlockIO", swiftSettings: strict),
        .target(name: "BlockStore", dependencies: ["BlockIO", "CLinux"], path: "Product/BlockStore", swiftSettings: strict),
        .executableTarget(
            name: "store-bench", dependencies: ["BlockIO", "BlockStore"], path: "Store", swiftSettings: strict),
    ]
)
